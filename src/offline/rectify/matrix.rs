//! The little linear algebra of rectification.

pub type Vector = [f64; 3];

/// 3x3, rows first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Matrix(pub [[f64; 3]; 3]);

impl Matrix {
    /// Rodrigues' formula: a turn by the length of `v` around its direction.
    pub fn from_rotation_vector(v: Vector) -> Self {
        let angle = length(v);
        if angle < f64::EPSILON {
            return Self([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        }
        let [x, y, z] = v.map(|part| part / angle);
        let (sin, cos) = angle.sin_cos();
        let rest = 1.0 - cos;
        Self([
            [
                cos + x * x * rest,
                x * y * rest - z * sin,
                x * z * rest + y * sin,
            ],
            [
                y * x * rest + z * sin,
                cos + y * y * rest,
                y * z * rest - x * sin,
            ],
            [
                z * x * rest - y * sin,
                z * y * rest + x * sin,
                cos + z * z * rest,
            ],
        ])
    }

    pub fn transposed(self) -> Self {
        Self(std::array::from_fn(|i| {
            std::array::from_fn(|j| self.0[j][i])
        }))
    }

    pub fn times(self, v: Vector) -> Vector {
        self.0
            .map(|row| row[0] * v[0] + row[1] * v[1] + row[2] * v[2])
    }

    pub fn multiply(self, other: Self) -> Self {
        let columns = other.transposed().0.map(|column| self.times(column));
        Self(columns).transposed()
    }
}

pub fn cross(a: Vector, b: Vector) -> Vector {
    [
        a[1] * b[2] - a[2] * b[1],
        a[2] * b[0] - a[0] * b[2],
        a[0] * b[1] - a[1] * b[0],
    ]
}

pub fn length(v: Vector) -> f64 {
    v.iter().map(|part| part * part).sum::<f64>().sqrt()
}

/// `v` with another length; a vector without direction stays as it is.
pub fn with_length(v: Vector, wanted: f64) -> Vector {
    let have = length(v);
    if have < f64::EPSILON {
        v
    } else {
        v.map(|part| part * wanted / have)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn_around_z_takes_x_to_y() {
        let quarter = Matrix::from_rotation_vector([0.0, 0.0, std::f64::consts::FRAC_PI_2]);
        let y = quarter.times([1.0, 0.0, 0.0]);
        assert!((y[0]).abs() < 1e-15 && (y[1] - 1.0).abs() < 1e-15);
        let back = quarter.transposed().multiply(quarter);
        assert!((back.0[0][0] - 1.0).abs() < 1e-15 && back.0[0][1].abs() < 1e-15);
        assert_eq!(
            Matrix::from_rotation_vector([0.0; 3]).times([1.0, 2.0, 3.0]),
            [1.0, 2.0, 3.0]
        );
        assert_eq!(cross([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]), [0.0, 0.0, 1.0]);
    }
}

//! The timeline as a picture: four panels over one axis of time, a band for each scenario.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::time::Instant;

use embedded_graphics::mono_font::MonoTextStyle;
use embedded_graphics::mono_font::ascii::{FONT_5X8, FONT_6X10};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{Line, PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Alignment, Text};

use super::suite::Row;
use super::timeline::Point as Moment;

/// Draws the rows of a run that began at `start`, and writes them as PNG.
///
/// # Errors
///
/// The file's.
pub fn write(rows: &[Row], start: Instant, path: &Path) -> io::Result<()> {
    draw(rows, start).write(path)
}

const WIDTH: i32 = 1400;
const LEFT: i32 = 70;
const RIGHT: i32 = WIDTH - 20;
const TOP: i32 = 60;
const PANEL: i32 = 150;
const BETWEEN: i32 = 35;

const INK: Rgb888 = Rgb888::new(40, 40, 40);
const GRID: Rgb888 = Rgb888::new(200, 200, 200);
const BAND: Rgb888 = Rgb888::new(240, 243, 247);
const FAILED: Rgb888 = Rgb888::new(255, 215, 210);
const BLUE: Rgb888 = Rgb888::new(20, 90, 180);
const ORANGE: Rgb888 = Rgb888::new(210, 110, 10);

/// A value of each moment, where it has one.
type Value = fn(&Moment) -> Option<f64>;

const PANELS: [(&str, &[(Value, Rgb888)]); 3] = [
    (
        "resident memory of the streamer, MiB",
        &[(|m| Some(m.resident_kib as f64 / 1024.0), BLUE)],
    ),
    (
        "its file descriptors (blue) and threads (orange)",
        &[
            (|m| Some(m.descriptors as f64), BLUE),
            (|m| Some(m.threads as f64), ORANGE),
        ],
    ),
    (
        "from capture to the last packet, ms: the slowest picture of each tenth of a second",
        &[(|m| Some(m.latency?.as_secs_f64() * 1e3), BLUE)],
    ),
];

fn draw(rows: &[Row], start: Instant) -> Canvas {
    let panels = PANELS.len() as i32 + 1;
    let mut canvas = Canvas::new(WIDTH, TOP + BETWEEN / 2 + panels * (PANEL + BETWEEN));
    let since = |at: Instant| at.saturating_duration_since(start).as_secs_f64();
    let end = rows
        .last()
        .map_or(1.0, |row| since(row.began) + row.seconds);
    let x = |seconds: f64| LEFT + (seconds / end.max(1.0) * f64::from(RIGHT - LEFT)) as i32;

    bands(&mut canvas, rows, &|row| {
        let from = since(row.began);
        (x(from), x(from + row.seconds))
    });
    for (n, (title, series)) in (0..).zip(PANELS) {
        let values = |value: Value| {
            rows.iter()
                .flat_map(|row| &row.timeline.0)
                .filter_map(value)
        };
        let most = series.iter().flat_map(|(value, _)| values(*value));
        let panel = Panel::new(n, most.fold(0.0, f64::max));
        panel.frame(&mut canvas, title);
        for (value, colour) in series {
            for row in rows {
                let moments = row.timeline.0.iter();
                let line = moments.map(|m| Some((x(since(m.at)), panel.y(value(m)?))));
                polyline(&mut canvas, line, *colour);
            }
        }
    }
    // Summed up over the whole run.
    let mut lost = 0;
    let moments = rows.iter().flat_map(|row| &row.timeline.0);
    let sums: Vec<_> = moments
        .map(|m| {
            lost += m.lost;
            (x(since(m.at)), lost as f64)
        })
        .collect();
    let panel = Panel::new(panels - 1, lost as f64);
    panel.frame(&mut canvas, "frames and units dropped by count, in all");
    let line = sums.iter().map(|(x, sum)| Some((*x, panel.y(*sum))));
    polyline(&mut canvas, line, BLUE);
    times(&mut canvas, end, &x);
    canvas
}

/// A band a scenario, its name above where there is room.
fn bands(canvas: &mut Canvas, rows: &[Row], span: &dyn Fn(&Row) -> (i32, i32)) {
    let bottom = canvas.height - BETWEEN;
    let mut free = [LEFT; 4];
    for (n, row) in rows.iter().enumerate() {
        let (from, to) = span(row);
        let colour = match (row.status, n % 2) {
            ("fail", _) => Some(FAILED),
            (_, 0) => Some(BAND),
            _ => None,
        };
        if let Some(colour) = colour {
            canvas.fill((from, TOP), (to, bottom), colour);
        }
        let width = 5 * row.name.len() as i32;
        let middle = (from + to) / 2;
        let at = (middle - width / 2).clamp(LEFT, RIGHT - width);
        if let Some((line, free)) = (0..).zip(&mut free).find(|(_, free)| **free <= at) {
            *free = at + width + 5;
            let style = MonoTextStyle::new(&FONT_5X8, INK);
            let baseline = Point::new(at, TOP - 6 - 10 * line);
            let _ = Text::new(row.name, baseline, style).draw(canvas);
        }
    }
}

fn times(canvas: &mut Canvas, end: f64, x: &dyn Fn(f64) -> i32) {
    let (unit, length) = match end {
        0.0..300.0 => ("s", 1.0),
        300.0..18_000.0 => ("min", 60.0),
        _ => ("h", 3600.0),
    };
    let step = round_up(end / length / 12.0, &OF_TIMES);
    let bottom = canvas.height - BETWEEN;
    let mut n = 0;
    while f64::from(n) * step * length <= end {
        let value = f64::from(n) * step;
        let at = x(value * length);
        canvas.line((at, bottom), (at, bottom + 4), INK);
        canvas.text((at, bottom + 15), &number(value, unit), Alignment::Center);
        n += 1;
    }
}

/// Where a panel is, and what its upper edge stands for.
struct Panel {
    top: i32,
    most: f64,
}

impl Panel {
    fn new(number: i32, most: f64) -> Self {
        Panel {
            top: TOP + BETWEEN / 2 + number * (PANEL + BETWEEN),
            most: 4.0 * round_up(most / 4.0, &OF_VALUES),
        }
    }

    fn y(&self, value: f64) -> i32 {
        self.top + PANEL - (value / self.most * f64::from(PANEL)) as i32
    }

    fn frame(&self, canvas: &mut Canvas, title: &str) {
        for quarter in 0..=4 {
            let value = self.most * f64::from(quarter) / 4.0;
            let y = self.y(value);
            canvas.line((LEFT, y), (RIGHT, y), GRID);
            canvas.text((LEFT - 5, y + 3), &number(value, ""), Alignment::Right);
        }
        canvas.text((LEFT, self.top - 5), title, Alignment::Left);
    }
}

/// At least `value`: one of the steps, each at least 1 and the last one 10, times a power of ten.
fn round_up(value: f64, steps: &[f64]) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    // A little less: 10 to the log of 1000 may be 999.999.
    let step = steps
        .iter()
        .find(|step| **step * power >= value * 0.999_999);
    step.unwrap_or(&10.0) * power
}

const OF_VALUES: [f64; 9] = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 10.0];
const OF_TIMES: [f64; 4] = [1.0, 2.0, 5.0, 10.0];

fn number(value: f64, unit: &str) -> String {
    let digits = usize::from(value.fract() != 0.0) * 2;
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

/// Joins what is there; where a value is missing the line breaks.
fn polyline(canvas: &mut Canvas, points: impl Iterator<Item = Option<(i32, i32)>>, colour: Rgb888) {
    let mut last = None;
    for point in points {
        if let Some(to) = point {
            canvas.line(last.unwrap_or(to), to, colour);
        }
        last = point;
    }
}

/// Red, green and blue of each pixel.
struct Canvas {
    width: i32,
    height: i32,
    pixels: Vec<u8>,
}

impl Canvas {
    fn new(width: i32, height: i32) -> Self {
        Canvas {
            width,
            height,
            pixels: vec![255; (width * height * 3) as usize],
        }
    }

    fn line(&mut self, from: (i32, i32), to: (i32, i32), colour: Rgb888) {
        let line = Line::new(from.into(), to.into());
        let _ = line
            .into_styled(PrimitiveStyle::with_stroke(colour, 1))
            .draw(self);
    }

    fn fill(&mut self, from: (i32, i32), to: (i32, i32), colour: Rgb888) {
        let area = Rectangle::with_corners(from.into(), to.into());
        let _ = area
            .into_styled(PrimitiveStyle::with_fill(colour))
            .draw(self);
    }

    fn text(&mut self, baseline: (i32, i32), text: &str, alignment: Alignment) {
        let style = MonoTextStyle::new(&FONT_6X10, INK);
        let _ = Text::with_alignment(text, baseline.into(), style, alignment).draw(self);
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let file = BufWriter::new(File::create(path)?);
        let mut encoder = png::Encoder::new(file, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        Ok(writer.finish()?)
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.width as u32, self.height as u32)
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Infallible> {
        for Pixel(Point { x, y }, colour) in pixels {
            if (0..self.width).contains(&x) && (0..self.height).contains(&y) {
                let at = (y * self.width + x) as usize * 3;
                self.pixels[at..at + 3].copy_from_slice(&[colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::Map;

    use super::*;
    use crate::faults::suite::Control;
    use crate::faults::timeline::Timeline;

    #[test]
    fn an_edge_is_round_and_not_below_its_value() {
        for (value, edge) in [
            (0.0, 1.0),
            (0.7, 0.8),
            (1.0, 1.0),
            (3.1, 4.0),
            (21.0, 25.0),
            (1000.0, 1000.0),
        ] {
            assert_eq!(round_up(value, &OF_VALUES), edge, "{value}");
        }
    }

    /// Memory that rises from 0 to 40 MiB: the line begins in a lower corner and ends at the upper edge.
    #[test]
    fn a_line_goes_from_corner_to_corner() {
        let start = Instant::now();
        let moments = (0..=10).map(|n| Moment {
            at: start + Duration::from_secs(n),
            resident_kib: n * 4096,
            descriptors: 3,
            threads: 2,
            latency: None,
            lost: 0,
        });
        let row = Row {
            name: "test",
            promise: "",
            status: "pass",
            reason: String::new(),
            began: start,
            seconds: 10.0,
            exit_codes: Map::new(),
            counts: Map::new(),
            checks: Vec::new(),
            control: Control::default(),
            log: String::new(),
            timeline: Timeline(moments.collect()),
        };
        let canvas = draw(&[row], start);
        let panel = Panel::new(0, 40.0);
        let colour = |x: i32, y: i32| &canvas.pixels[(y * WIDTH + x) as usize * 3..][..3];
        let blue = [BLUE.r(), BLUE.g(), BLUE.b()];
        assert_eq!(colour(LEFT, panel.top + PANEL), blue);
        assert_eq!(colour(RIGHT, panel.top), blue);
        assert_ne!(colour(LEFT, panel.top), blue);
    }
}

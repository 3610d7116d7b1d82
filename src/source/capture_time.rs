//! What a capture time means: it is on the producer's clock, which need not be the system's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::hints::Clock;

/// How old a capture time was when its notice came, `waited` before `now`.
pub(super) fn age_of(
    capture_ns: u64,
    clock: Clock,
    waited: Duration,
    now: SystemTime,
) -> Option<i64> {
    // The frames of a recording have the age of the recording, which is nobody's delay.
    let capture = unix_time(capture_ns, clock, now).filter(|time| is_near(*time, now))?;
    let now = now.duration_since(UNIX_EPOCH).ok()?.checked_sub(waited)?;
    let now = u64::try_from(now.as_nanos()).ok()?;
    // Within a day of each other: far from the ends of the numbers.
    i64::try_from(i128::from(now) - i128::from(capture)).ok()
}

/// `time` as nanoseconds of Unix time, if its `clock` shows that.
pub(super) fn unix_time(time: u64, clock: Clock, now: SystemTime) -> Option<u64> {
    match clock {
        Clock::MediaTime => None,
        // What is said may be of the producer before this one, whose times began at 0.
        Clock::UnixEpoch if time >= CAMERAS_SINCE_NS => Some(time),
        Clock::UnixEpoch | Clock::Unknown => is_near(time, now).then_some(time),
    }
}

/// Whether `time` is within a day of `now`, both in Unix time; media time is not.
fn is_near(time: u64, now: SystemTime) -> bool {
    now.duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|now| u64::try_from(now.as_nanos()).ok())
        .is_some_and(|now| time.abs_diff(now) < DAY_NS)
}

const DAY_NS: u64 = 24 * 60 * 60 * 1_000_000_000;
/// 9 September 2001. As media time it would be 31 years.
const CAMERAS_SINCE_NS: u64 = 1_000_000_000_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_word_capture_times_within_a_day_of_now_are_unix_time() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let at = |seconds: u64| unix_time(seconds * 1_000_000_000, Clock::Unknown, now);
        assert_eq!(at(1_700_000_000 - 86_399), Some(1_699_913_601_000_000_000));
        assert_eq!(at(1_700_000_000 + 86_400), None);
        assert_eq!(at(0), None, "media time");
        assert_eq!(unix_time(u64::MAX, Clock::Unknown, now), None);
    }

    #[test]
    fn the_producers_word_about_its_clock_is_taken() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let (today, recorded) = (1_700_000_000_000_000_000, 1_500_000_000_000_000_000);
        let waited = Duration::ZERO;
        for (clock, time, unix, age) in [
            (Clock::MediaTime, today, None, None),
            (Clock::MediaTime, 0, None, None),
            (Clock::UnixEpoch, today, Some(today), Some(0)),
            (Clock::UnixEpoch, recorded, Some(recorded), None),
            (Clock::UnixEpoch, 0, None, None),
            (Clock::Unknown, today, Some(today), Some(0)),
            (Clock::Unknown, recorded, None, None),
        ] {
            assert_eq!(unix_time(time, clock, now), unix, "{clock:?} {time}");
            assert_eq!(age_of(time, clock, waited, now), age, "{clock:?} {time}");
        }
    }
}

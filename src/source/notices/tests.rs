use super::*;

#[test]
fn ids_that_were_left_out_are_counted() {
    let mut sequence = Sequence::default();
    assert_eq!(sequence.place(5, 100), Seen::Newer { missed: 0 });
    assert_eq!(sequence.place(6, 200), Seen::Newer { missed: 0 });
    assert_eq!(sequence.place(10, 300), Seen::Newer { missed: 3 });
    assert_eq!(sequence.last_id(), Some(10));
}

#[test]
fn a_wrap_of_the_id_with_time_going_forward_is_no_discontinuity() {
    let mut sequence = Sequence::default();
    sequence.place(u32::MAX - 1, 100);
    assert_eq!(sequence.place(u32::MAX, 200), Seen::Newer { missed: 0 });
    assert_eq!(sequence.place(1, 300), Seen::Newer { missed: 1 });
}

#[test]
fn an_id_or_a_time_that_goes_back_is_one() {
    for (id, time) in [(0, 900), (500, 900), (u32::MAX, 900), (501, 99)] {
        let mut sequence = Sequence::default();
        sequence.place(500, 100);
        assert_eq!(sequence.place(id, time), Seen::Back, "{id} at {time}");
    }
    let mut wrapped = Sequence::default();
    wrapped.place(u32::MAX, 100);
    assert_eq!(wrapped.place(0, 0), Seen::Back, "wrap with time going back");
}

#[test]
fn a_frame_is_taken_once_but_may_be_tried_again() {
    let mut sequence = Sequence::default();
    sequence.place(0, 0);
    assert_eq!(sequence.place(0, 0), Seen::Again);
    sequence.take(0, 0);
    assert_eq!(sequence.place(0, 0), Seen::Taken);
    assert_eq!(
        sequence.place(1, 0),
        Seen::Newer { missed: 0 },
        "time may stand still"
    );
}

fn notice(frame_id: u32, arrival: Instant) -> FrameNotice {
    FrameNotice {
        frame_id,
        timestamp_ns: 0,
        arrival,
        age_ns: None,
    }
}

#[test]
fn the_interval_is_a_median_per_id_and_unknown_at_first() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut interval = FrameInterval::default();
    for (id, ms) in [(1, 0), (2, 40), (3, 80)] {
        interval.observe(notice(id, at(ms)));
        assert_eq!(interval.typical(), None);
    }
    // two ids apart
    interval.observe(notice(5, at(160)));
    assert_eq!(interval.typical(), Some(Duration::from_millis(40)));
    // a pause of a minute is one sample; a restart is none
    interval.observe(notice(6, at(60_160)));
    interval.break_off();
    interval.observe(notice(0, at(60_161)));
    assert_eq!(interval.typical(), Some(Duration::from_millis(40)));
}

/// Frames 10 ms apart, with the lateness that `late` gives to some.
fn rhythm(frames: u32, late: &[(u32, u64)]) -> (FrameInterval, Instant) {
    let start = Instant::now();
    let mut interval = FrameInterval::default();
    for id in 0..frames {
        let late = late
            .iter()
            .find(|(of, _)| *of == id)
            .map_or(0, |(_, ms)| *ms);
        let at = start + Duration::from_millis(u64::from(id) * 10 + late);
        interval.observe(notice(id, at));
    }
    (
        interval,
        start + Duration::from_millis(u64::from(frames - 1) * 10),
    )
}

#[test]
fn a_late_notice_was_due_when_the_rhythm_says() {
    let (interval, on_time) = rhythm(40, &[(39, 8)]);
    assert_eq!(interval.due(), Some(on_time));
    let (interval, on_time) = rhythm(40, &[(35, 6), (36, 9), (38, 5), (39, 4)]);
    assert_eq!(interval.due(), Some(on_time));
    let (interval, on_time) = rhythm(40, &[(20, 9)]);
    assert_eq!(interval.due(), Some(on_time));
    // known as soon as the interval is
    let (interval, on_time) = rhythm(6, &[(5, 7)]);
    assert_eq!(interval.due(), Some(on_time));
}

#[test]
fn behind_a_missed_frame_the_next_one_is_due() {
    let (interval, on_time) = rhythm(40, &[(39, 23)]);
    assert_eq!(interval.due(), Some(on_time));
}

#[test]
fn a_rhythm_that_has_shifted_for_good_is_the_new_one_after_a_few_frames() {
    let shifted: Vec<_> = (37..40).map(|id| (id, 12)).collect();
    let (interval, on_time) = rhythm(40, &shifted);
    assert_eq!(interval.due(), Some(on_time), "one of four was on time");
    let shifted: Vec<_> = (36..40).map(|id| (id, 12)).collect();
    let (interval, on_time) = rhythm(40, &shifted);
    assert_eq!(interval.due(), Some(on_time + Duration::from_millis(12)));
}

#[test]
fn a_camera_that_slows_down_is_on_time_again_after_five_frames() {
    let slower: Vec<_> = (30..36).map(|id| (id, u64::from(id - 29) * 10)).collect();
    let (interval, _) = rhythm(36, &slower);
    let (_, arrival) = interval.rhythm.back().expect("a notice was seen");
    assert_eq!(interval.due(), Some(*arrival));
}

#[test]
fn who_is_late_for_every_notice_sees_it_by_their_age() {
    let start = Instant::now();
    let mut interval = FrameInterval::default();
    let mut see = |id: u32, late_ms: u64| {
        let at = start + Duration::from_millis(u64::from(id) * 10 + late_ms);
        interval.observe(FrameNotice {
            age_ns: Some(2_000_000 + late_ms as i64 * 1_000_000),
            ..notice(id, at)
        });
        at - interval.due().expect("a notice was seen")
    };
    (0..40).for_each(|id| assert_eq!(see(id, 0), Duration::ZERO));
    // longer than any rhythm is remembered
    (40..110).for_each(|id| assert_eq!(see(id, 7), Duration::from_millis(7), "{id}"));
    assert_eq!(
        see(110, 35),
        Duration::from_millis(35),
        "frames are pending"
    );
    // A second later a producer that has become slower is taken for one.
    (111..240).for_each(|id| _ = see(id, 7));
    assert_eq!(see(240, 7), Duration::ZERO);
    // Where ages are not alike, what they are at best shows more rarely: remembered for four.
    (241..600).for_each(|id| _ = see(id, 9 + u64::from(id % 3)));
    assert_eq!(see(600, 9), Duration::from_millis(2));
    (601..800).for_each(|id| _ = see(id, 9 + u64::from(id % 3)));
    assert_eq!(see(800, 9), Duration::ZERO);
}

/// Notices on our clock, by id, ms when the frame was taken, and ms that its notice took.
fn on_our_clock(notices: impl IntoIterator<Item = (u32, u64, u64)>) -> Vec<(u64, u64, u64)> {
    let start = Instant::now();
    let mut interval = FrameInterval::default();
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap();
    notices
        .into_iter()
        .map(|(frame_id, taken, took)| {
            let arrival = start + Duration::from_millis(taken + took);
            interval.observe(FrameNotice {
                frame_id,
                timestamp_ns: (1_700_000_000_000 + taken) * 1_000_000,
                arrival,
                age_ns: Some(took as i64 * 1_000_000),
            });
            let late = arrival - interval.due().expect("a notice was seen");
            let end = interval.latest_end().unwrap_or(arrival);
            let left = end.saturating_duration_since(arrival);
            (
                ms(interval.shortest().unwrap_or_default()),
                ms(late),
                ms(left),
            )
        })
        .collect()
}

#[test]
fn a_producer_without_a_core_is_not_given_the_time_of_two_frames() {
    let mut taken = 0;
    let frames = (0..250).map(|id| {
        // 10 ms apart while it has one, then with every other moment left out for three seconds.
        taken += if id < 20 || id % 2 == 0 { 10 } else { 20 };
        (id, taken, 3)
    });
    let seen = on_our_clock(frames);
    for (id, (shortest, ..)) in seen.iter().enumerate().skip(1) {
        assert_eq!(*shortest, 10, "{id}");
    }
    // Taken 8 ms late, behind frames of which each was behind a moment left out: the next one has 2 ms.
    let mut taken = 0;
    let frames = (0..41).map(|id| {
        taken += match id {
            40 => 18,
            0..20 => 10,
            id if id % 4 == 3 => 20,
            _ => 10,
        };
        (id, taken, 3)
    });
    let (_, late, _) = *on_our_clock(frames).last().unwrap();
    assert!(late >= 8, "{late} ms");
}

#[test]
fn a_camera_on_our_clock_that_slows_down_is_on_time_again_after_eight_frames() {
    let slower = |id: u32| u64::from(id) * 10 + u64::from(id.saturating_sub(30)) * 10;
    let seen = on_our_clock((0..60).map(|id| (id, slower(id), 3)));
    for (id, (shortest, late, _)) in seen.into_iter().enumerate().skip(1) {
        assert_eq!(shortest, 10, "{id}: it may go back");
        assert_eq!(late > 0, (31..38).contains(&id), "{id}: {late}");
    }
}

#[test]
fn while_distances_are_not_alike_the_shortest_bounds_every_read() {
    // All late, one after the other less, and then the next 4 ms behind the last.
    let late = [
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 9, 8, 8, 7, 7, 1, 7, 7, 7, 7, 7,
    ];
    let frames = (0..22_u32).map(|id| (id, u64::from(id) * 10 + late[id as usize], 3));
    let seen = on_our_clock(frames);
    assert_eq!(seen[9], (10, 0, 7));
    // Nobody before it was in time by more than this one is, but 4 ms lie between some.
    assert_eq!(seen[21].2, 2);
}

#[test]
fn two_frames_at_once_leave_prompt_reads_their_time() {
    // ms that are left where the writer is late by as much as this, again and again.
    let left = |late: &[u64]| -> Vec<u64> {
        let frames = (0..300_u32).map(|id| {
            let late = late[id as usize % late.len()];
            (id, u64::from(id) * 10 + late, 3)
        });
        let seen = on_our_clock(frames);
        seen.into_iter().skip(20).map(|(.., left)| left).collect()
    };
    assert!(left(&[0, 2, 1, 3, 0, 1]).into_iter().all(|left| left >= 2));
    let of_uneven = left(&[0, 6, 2, 5, 1, 4, 6, 0, 3, 2]);
    // Those that were late themselves have nothing left.
    let none = of_uneven.iter().filter(|left| **left == 0).count();
    assert!(none < of_uneven.len() / 3, "{none} of {}", of_uneven.len());
}

#[test]
fn a_late_frame_and_its_late_notice_add_up() {
    let frames = (0..40).map(|id| match id {
        39 => (id, 394, 6),
        _ => (id, u64::from(id) * 10, 3),
    });
    assert_eq!(on_our_clock(frames).last(), Some(&(10, 7, 0)));
    // One late frame leaves the others in time.
    let frames = (0..60).map(|id| match id {
        39 => (id, 394, 3),
        _ => (id, u64::from(id) * 10, 3),
    });
    assert_eq!(on_our_clock(frames).last(), Some(&(8, 0, 6)));
}

#[test]
fn what_larger_pictures_take_longer_is_no_lateness_once_the_smaller_ones_are_forgotten() {
    let start = Instant::now();
    let mut interval = FrameInterval::default();
    let see = |interval: &mut FrameInterval, id: u32, age_ms: u64| {
        let taken = u64::from(id) * 16;
        interval.observe(FrameNotice {
            timestamp_ns: 1_700_000_000_000_000_000 + taken * 1_000_000,
            age_ns: Some(age_ms as i64 * 1_000_000),
            ..notice(id, start + Duration::from_millis(taken + age_ms))
        });
        let arrival = interval.last.expect("just seen").arrival;
        interval
            .latest_end()
            .map(|end| end.saturating_duration_since(arrival))
    };
    (0..40).for_each(|id| _ = see(&mut interval, id, 1));
    assert!(see(&mut interval, 40, 13) < Some(Duration::from_millis(1)));
    interval.forget();
    assert!(see(&mut interval, 41, 13) > Some(Duration::from_millis(9)));
    assert!(see(&mut interval, 42, 13) > Some(Duration::from_millis(7)));
}

#[test]
fn without_a_rhythm_a_notice_is_due_when_it_arrives() {
    let mut interval = FrameInterval::default();
    assert_eq!(interval.due(), None);
    let now = Instant::now();
    interval.observe(notice(7, now));
    assert_eq!(interval.due(), Some(now));
    let (mut interval, last) = rhythm(40, &[]);
    interval.break_off();
    let back = last + Duration::from_millis(4);
    interval.observe(notice(0, back));
    assert_eq!(interval.due(), Some(back), "another sequence");
}

#[test]
fn a_notice_that_waited_has_probably_arrived_an_interval_after_the_last() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut interval = FrameInterval::default();
    for id in 0..4 {
        interval.observe(notice(id, at(u64::from(id) * 10)));
    }
    assert_eq!(interval.probable_arrival(5, at(31), at(59)), at(50));
    assert_eq!(interval.probable_arrival(5, at(55), at(59)), at(55));
    assert_eq!(interval.probable_arrival(9, at(31), at(59)), at(59));
}

use rstest::rstest;

use super::*;

/// 2024-02-29 23:59:58 UTC, a Thursday, and a quarter of a second.
const HOST: i128 = 1_709_251_198 * SECOND + SECOND / 4;

fn set(rtc: &mut RtcState, register: usize, value: u8, host: i128) {
    rtc.write(INDEX, register as u8, host);
    rtc.write(DATA, value, host);
}

fn get(rtc: &mut RtcState, register: usize, host: i128) -> u8 {
    rtc.write(INDEX, register as u8, host);
    rtc.read(DATA, host)
}

/// Seconds, minutes, hours, weekday, day, month, year, century.
fn time(rtc: &mut RtcState, host: i128) -> [u8; 8] {
    TIME.map(|register| get(rtc, register, host))
}

#[rstest]
#[case(0, [0x58, 0x59, 0x91, 5, 0x29, 2, 0x24, 0x20])]
#[case(calendar::HOURS_24, [0x58, 0x59, 0x23, 5, 0x29, 2, 0x24, 0x20])]
#[case(4, [58, 59, 11 | 0x80, 5, 29, 2, 24, 0x20])]
#[case(4 | calendar::HOURS_24, [58, 59, 23, 5, 29, 2, 24, 0x20])]
fn time_is_the_hosts_in_every_format(#[case] format: u8, #[case] expected: [u8; 8]) {
    let mut rtc = RtcState::default();
    set(&mut rtc, B, format, HOST);
    assert_eq!(time(&mut rtc, HOST), expected);
    // Held and set to what it shows, it shows that again.
    set(&mut rtc, B, format | B_SET, HOST);
    assert_eq!(time(&mut rtc, HOST + 5 * SECOND), expected);
    set(&mut rtc, B, format, HOST + 5 * SECOND);
    assert_eq!(time(&mut rtc, HOST + 5 * SECOND), expected);
}

#[test]
fn seconds_carry_into_the_next_month() {
    let mut rtc = RtcState::default();
    assert_eq!(time(&mut rtc, HOST + 2 * SECOND), [0, 0, 0, 6, 1, 3, 0x24, 0x20]);
}

#[rstest]
#[case(0x00, 0)]
#[case(0x12, 12)]
#[case(0x23, 23)]
fn hours_of_half_a_day_begin_at_12(#[case] digits: u8, #[case] hour: u8) {
    let mut rtc = RtcState::default();
    set(&mut rtc, 4, digits, HOST);
    set(&mut rtc, B, 0, HOST);
    let shown = get(&mut rtc, 4, HOST);
    assert_eq!((shown & 0x80 != 0, shown & 0x7f != 0), (hour >= 12, true));
    // Written again, it means the same.
    set(&mut rtc, 4, shown, HOST);
    set(&mut rtc, B, calendar::HOURS_24, HOST);
    assert_eq!(get(&mut rtc, 4, HOST), digits);
}

/// As Linux sets it: hold the clock by SET and the divider, write, release SET, then the divider.
#[test]
fn clock_whose_divider_was_held_begins_halfway_through_a_second() {
    let mut rtc = RtcState::default();
    set(&mut rtc, B, calendar::HOURS_24 | B_SET, HOST);
    set(&mut rtc, A, 0x76, HOST);
    for (register, value) in TIME.into_iter().zip([0x56, 0x34, 0x12, 3, 0x31, 0x12, 0x99, 0x22]) {
        set(&mut rtc, register, value, HOST);
    }
    let later = HOST + 10 * SECOND;
    set(&mut rtc, B, calendar::HOURS_24, later);
    assert_eq!(get(&mut rtc, 0, later + SECOND), 0x56, "the divider still holds it");
    set(&mut rtc, A, 0x26, later);
    let at = |rtc: &mut RtcState, nanos| get(rtc, 0, later + nanos);
    assert_eq!(at(&mut rtc, HALF_SECOND - 1), 0x56);
    assert_eq!(at(&mut rtc, HALF_SECOND), 0x57);
    assert_eq!(time(&mut rtc, later), [0x56, 0x34, 0x12, 1, 0x31, 0x12, 0x99, 0x22]);
}

#[test]
fn register_set_while_the_clock_runs_keeps_the_fraction() {
    let mut rtc = RtcState::default();
    set(&mut rtc, 2, 0x30, HOST);
    assert_eq!(time(&mut rtc, HOST)[..3], [0x58, 0x30, 0x23]);
    let next = HOST + SECOND * 3 / 4;
    assert_eq!(get(&mut rtc, 0, next - 1), 0x58);
    assert_eq!(get(&mut rtc, 0, next), 0x59);
}

#[test]
fn invalid_values_become_valid_ones() {
    let mut rtc = RtcState::default();
    set(&mut rtc, B, calendar::HOURS_24 | B_SET, HOST);
    for register in TIME {
        set(&mut rtc, register, 0xff, HOST);
    }
    assert_eq!(get(&mut rtc, 0, HOST), 0xff);
    set(&mut rtc, B, calendar::HOURS_24, HOST);
    let shown = time(&mut rtc, HOST);
    assert_eq!(shown, [0x59, 0x59, 0x23, 6, 0x31, 0x12, 0x99, 0x99]);
    set(&mut rtc, 8, 0x02, HOST);
    assert_eq!(time(&mut rtc, HOST)[4..6], [0x28, 0x02]);
}

#[test]
fn update_is_announced_before_it_happens() {
    let mut rtc = RtcState::default();
    let update = HOST + SECOND * 3 / 4;
    let announced = |rtc: &mut RtcState, host| get(rtc, A, host) & A_UPDATE != 0;
    assert!(!announced(&mut rtc, update - UPDATE_AHEAD - 1));
    assert!(announced(&mut rtc, update - UPDATE_AHEAD));
    assert!(announced(&mut rtc, update - 1));
    assert!(!announced(&mut rtc, update));
}

#[test]
fn update_interrupts_once_until_it_is_acknowledged() {
    let mut rtc = RtcState::default();
    set(&mut rtc, B, calendar::HOURS_24 | UPDATE, HOST);
    let quarter = Duration::from_millis(250);
    assert_eq!(rtc.next_interrupt(HOST), Some(3 * quarter));
    assert!(!rtc.raises_interrupt(HOST + SECOND / 2));
    assert!(rtc.raises_interrupt(HOST + SECOND));
    assert!(!rtc.raises_interrupt(HOST + 2 * SECOND));
    assert_eq!(rtc.next_interrupt(HOST + 2 * SECOND), None);
    // The alarm, for midnight, is not enabled.
    let events = C_INTERRUPT | UPDATE | ALARM_EVENT;
    assert_eq!(get(&mut rtc, C, HOST + 2 * SECOND), events);
    assert_eq!(get(&mut rtc, C, HOST + 2 * SECOND), 0);
    assert_eq!(rtc.next_interrupt(HOST + 2 * SECOND), Some(3 * quarter));
}

#[test]
fn alarm_that_came_during_an_update_of_the_vmm_is_raised_after_it() {
    let mut rtc = RtcState::default();
    for (register, value) in ALARM.into_iter().zip([0x05, 0x00, 0x00]) {
        set(&mut rtc, register, value, HOST);
    }
    set(&mut rtc, B, calendar::HOURS_24 | ALARM_EVENT, HOST);
    assert_eq!(rtc.next_interrupt(HOST), Some(Duration::from_millis(6750)));
    assert!(!rtc.raises_interrupt(HOST + 6 * SECOND));
    let mut bytes = Vec::new();
    ciborium::into_writer(&rtc, &mut bytes).unwrap();
    let mut restored: RtcState = ciborium::from_reader(bytes.as_slice()).unwrap();
    assert_eq!(restored, rtc);
    assert!(restored.raises_interrupt(HOST + 20 * SECOND));
    assert_eq!(get(&mut restored, C, HOST + 20 * SECOND) & ALARM_EVENT, ALARM_EVENT);
    // The next one is tomorrow.
    let day = Duration::from_secs(86_400 - 20) + Duration::from_millis(6750);
    assert_eq!(restored.next_interrupt(HOST + 20 * SECOND), Some(day));
}

#[rstest]
#[case([0xc0, 0xff, 0xc0], 1)]
#[case([0x30, 0xc0, 0xc0], 32)]
#[case([0x00, 0x00, 0xc0], 2)]
#[case([0x58, 0x59, 0x23], 86_400)]
fn alarm_registers_may_match_any_value(#[case] alarm: [u8; 3], #[case] seconds: i64) {
    let now = HOST.div_euclid(SECOND) as i64;
    assert_eq!(Mode::of(calendar::HOURS_24).next_alarm(now, alarm), Some(now + seconds));
}

#[test]
fn invalid_alarm_never_comes() {
    assert_eq!(Mode::of(calendar::HOURS_24).next_alarm(0, [0x60, 0, 0]), None);
}

#[test]
fn a_host_clock_that_is_set_back_causes_no_event() {
    let mut rtc = RtcState::default();
    set(&mut rtc, B, calendar::HOURS_24 | UPDATE, HOST);
    assert!(!rtc.raises_interrupt(HOST - 3600 * SECOND));
    assert!(rtc.raises_interrupt(HOST - 3599 * SECOND));
}

#[test]
fn reset_keeps_time_and_memory_and_disables_interrupts() {
    let mut rtc = RtcState::default();
    set(&mut rtc, 4, 0x05, HOST);
    set(&mut rtc, 0x7f, 0xa5, HOST);
    set(&mut rtc, B, calendar::HOURS_24 | UPDATE, HOST);
    assert!(rtc.raises_interrupt(HOST + SECOND));
    let mut rtc = rtc.after_reset();
    let host = HOST + SECOND;
    assert_eq!([4, 0x7f, B, C].map(|r| get(&mut rtc, r, host)), [0x05, 0xa5, 2, 0]);
}

#[test]
fn index_is_write_only_and_c_and_d_are_read_only() {
    let mut rtc = RtcState::default();
    rtc.write(INDEX, 0x80 | D as u8, HOST);
    assert_eq!((rtc.read(INDEX, HOST), rtc.read(DATA, HOST)), (0xff, D_VALID));
    set(&mut rtc, C, 0xff, HOST);
    set(&mut rtc, D, 0, HOST);
    assert_eq!([C, D].map(|register| get(&mut rtc, register, HOST)), [0, D_VALID]);
}

#[rstest]
#[case("index", 128.into(), "the clock's index is above 127")]
#[case("ahead", ciborium::Value::Array(vec![(1_i64 << 40).into(), 0.into()]), "the clock's offset is out of range")]
#[case("ahead", ciborium::Value::Array(vec![0.into(), 1_000_000_000.into()]), "the clock's offset is out of range")]
#[case("seen", i64::MAX.into(), "the clock's second is out of range")]
#[case("registers", ciborium::Value::Bytes(vec![0; 127]), "")]
fn rejects_forged_state(#[case] name: &str, #[case] value: ciborium::Value, #[case] why: &str) {
    let mut state = ciborium::Value::serialized(&RtcState::default()).unwrap();
    assert!(state.deserialized::<RtcState>().is_ok());
    let fields = state.as_map_mut().unwrap();
    let field = fields.iter_mut().find(|(key, _)| key.as_text() == Some(name)).unwrap();
    field.1 = value;
    let error = state.deserialized::<RtcState>().unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

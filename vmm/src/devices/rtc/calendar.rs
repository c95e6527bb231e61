//! The clock's registers of time and alarm, in the format that register B sets.

use chrono::{DateTime, Datelike, NaiveDate, Timelike};

/// In register B: hours from 0 to 23, not 1 to 12 with a bit for the afternoon.
pub const HOURS_24: u8 = 1 << 1;
/// In register B: binary numbers, not two decimal digits.
const BINARY: u8 = 1 << 2;

const SECONDS: usize = 0;
const MINUTES: usize = 2;
const HOURS: usize = 4;
const WEEKDAY: usize = 6;
const DAY: usize = 7;
const MONTH: usize = 8;
const YEAR: usize = 9;
/// Always two decimal digits.
pub const CENTURY: usize = 0x32;
/// The registers of the time.
pub const TIME: [usize; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];
/// Number of registers of the alarm.
pub const ALARMS: usize = 3;
/// The registers of the alarm: seconds, minutes, hours.
pub const ALARM: [usize; ALARMS] = [SECONDS + 1, MINUTES + 1, HOURS + 1];
/// An alarm register with both of these bits matches every value.
const ANY: u8 = 0xc0;

const AFTERNOON: u8 = 1 << 7;
const DAY_SECONDS: i64 = 86_400;

/// The format of the registers.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    binary: bool,
    hours_24: bool,
}

impl Mode {
    /// Returns the format that register B sets.
    pub fn of(b: u8) -> Self {
        Self { binary: b & BINARY != 0, hours_24: b & HOURS_24 != 0 }
    }

    /// Puts the time `seconds` after 1970 into the registers.
    pub fn show(self, seconds: i64, registers: &mut [u8; 128]) {
        let time = DateTime::from_timestamp(seconds, 0).unwrap_or_default();
        let year = time.year().rem_euclid(10_000) as u32;
        for (register, value) in [
            (SECONDS, time.second()),
            (MINUTES, time.minute()),
            (WEEKDAY, time.weekday().number_from_sunday()),
            (DAY, time.day()),
            (MONTH, time.month()),
            (YEAR, year % 100),
        ] {
            registers[register] = self.encode(value as u8);
        }
        registers[HOURS] = self.encode_hours(time.hour() as u8);
        registers[CENTURY] = to_digits((year / 100) as u8);
    }

    /// Returns the time in the registers, in seconds after 1970. What is invalid becomes the
    /// nearest valid value.
    pub fn seconds(self, registers: &[u8; 128]) -> i64 {
        let field =
            |register: usize, most: u8| u32::from(self.decode(registers[register]).min(most));
        let century = u32::from(from_digits(registers[CENTURY]).min(99));
        let year = (century * 100 + field(YEAR, 99)) as i32;
        let month = field(MONTH, 12).max(1);
        // Day 1 always exists.
        let days = (1..=field(DAY, 31).max(1)).rev();
        let date = days.into_iter().find_map(|day| NaiveDate::from_ymd_opt(year, month, day));
        let hours = u32::from(self.decode_hours(registers[HOURS]).min(23));
        let time =
            date.and_then(|date| date.and_hms_opt(hours, field(MINUTES, 59), field(SECONDS, 59)));
        time.unwrap_or_default().and_utc().timestamp()
    }

    /// Returns the first second after `after` for which the alarm is set; `None` if its registers
    /// are invalid.
    pub fn next_alarm(self, after: i64, [seconds, minutes, hours]: [u8; ALARMS]) -> Option<i64> {
        if [seconds, minutes, hours].iter().all(|register| *register >= ANY) {
            return Some(after + 1);
        }
        let values = |register: u8, decode: fn(Self, u8) -> u8, count: u8| match register {
            ANY.. => 0..i64::from(count),
            one => {
                let value = decode(self, one);
                let end = if value < count { value + 1 } else { value };
                i64::from(value)..i64::from(end)
            }
        };
        let (seconds, minutes) =
            (values(seconds, Self::decode, 60), values(minutes, Self::decode, 60));
        let hours = values(hours, Self::decode_hours, 24);
        let mut times = hours.flat_map(|hour| {
            let seconds = seconds.clone();
            let of_minute = move |minute: i64| {
                seconds.clone().map(move |second| (hour * 60 + minute) * 60 + second)
            };
            minutes.clone().flat_map(of_minute)
        });
        let (midnight, now) =
            (after - after.rem_euclid(DAY_SECONDS), after.rem_euclid(DAY_SECONDS));
        let first = times.clone().next()?;
        let time = times.find(|time| *time > now).unwrap_or(first + DAY_SECONDS);
        Some(midnight + time)
    }

    fn encode(self, value: u8) -> u8 {
        if self.binary { value } else { to_digits(value) }
    }

    fn decode(self, register: u8) -> u8 {
        if self.binary { register } else { from_digits(register) }
    }

    fn encode_hours(self, hour: u8) -> u8 {
        if self.hours_24 {
            return self.encode(hour);
        }
        // 12, 1, … 11.
        let shown = self.encode((hour + 11) % 12 + 1);
        if hour >= 12 { shown | AFTERNOON } else { shown }
    }

    fn decode_hours(self, register: u8) -> u8 {
        if self.hours_24 {
            return self.decode(register);
        }
        let hour = self.decode(register & !AFTERNOON) % 12;
        if register & AFTERNOON != 0 { hour + 12 } else { hour }
    }
}

fn to_digits(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

fn from_digits(digits: u8) -> u8 {
    (digits >> 4) * 10 + (digits & 0xf)
}

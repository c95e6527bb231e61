//! The timeline of everything that happens in a case, on a single clock.

use std::fs::File;
use std::io::{BufWriter, LineWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::observe::clock;

/// The name of the file in the evidence folder.
pub const TIMELINE: &str = "timeline.jsonl";
/// The name of the file with the lines before the last rotation, until the timeline is closed.
pub const OLDER: &str = "timeline.older.jsonl";

/// The sources of entries, including the second QMP client.
pub const SOURCES: [&str; 8] = [
    "harness",
    "qmp-sent",
    "qmp-received",
    "qmp-2-sent",
    "qmp-2-received",
    "vmm",
    "console",
    "serial",
];

/// One line of `timeline.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Seconds since the harness started.
    pub t: f64,
    /// The source, usually one of [`SOURCES`].
    pub source: String,
    /// The message.
    pub text: String,
}

/// Returns the entries in `text` in order of time, and the number of invalid lines: the writer may
/// have been killed in the middle of one.
pub fn parse(text: &str) -> (Vec<Entry>, usize) {
    let (mut entries, mut damaged) = (Vec::new(), 0);
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        match serde_json::from_str::<Entry>(line) {
            Ok(entry) if entry.t.is_finite() => entries.push(entry),
            Ok(_) | Err(_) => damaged += 1,
        }
    }
    entries.sort_by(|a, b| a.t.total_cmp(&b.t));
    (entries, damaged)
}

/// A file and its length.
struct Written {
    /// Flushed after each line, so that no entry is lost if the harness is killed.
    file: LineWriter<File>,
    bytes: usize,
}

/// A timeline being written.
pub struct Timeline {
    path: PathBuf,
    file: Mutex<Written>,
}

impl Timeline {
    /// Creates a timeline at `path`.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        let file = LineWriter::new(File::create(path)?);
        Ok(Self { path: path.to_owned(), file: Mutex::new(Written { file, bytes: 0 }) })
    }

    /// Adds an entry with the current time.
    pub fn say(&self, source: &str, text: impl Into<String>) {
        self.say_at(clock::now(), source, text);
    }

    /// Adds an entry with the given `time`.
    pub fn say_at(&self, time: Duration, source: &str, text: impl Into<String>) {
        let entry = Entry { t: time.as_secs_f64(), source: source.into(), text: text.into() };
        let line = serde_json::to_string(&entry).unwrap_or_default();
        let mut written = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        written.bytes += line.len() + 1;
        // Ignored: a full disk is reported when the verdict is written.
        let _ = writeln!(written.file, "{line}");
    }

    /// Rotates the timeline if it is longer than `limit` bytes: keeps its lines in the older file,
    /// and drops the previous older file.
    pub fn rotate(&self, limit: usize) -> std::io::Result<()> {
        let mut written = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if written.bytes > limit {
            written.file.flush()?;
            std::fs::rename(&self.path, self.older())?;
            *written = Written { file: LineWriter::new(File::create(&self.path)?), bytes: 0 };
        }
        Ok(())
    }

    /// Returns the path of the lines before the last rotation.
    fn older(&self) -> PathBuf {
        self.path.with_file_name(OLDER)
    }

    /// Adds a log line, with the time that it contains, or else with the current time.
    pub fn say_stamped(&self, source: &str, line: &str) {
        self.say_at(stamped(line).unwrap_or_else(clock::now), source, line);
    }

    /// Rewrites the file in order of time: logs are collected later than they are written.
    pub fn finish(&self) -> std::io::Result<()> {
        let mut written = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        written.file.flush()?;
        // Missing if the timeline was never rotated.
        let mut text = std::fs::read_to_string(self.older()).unwrap_or_default();
        text.push_str(&std::fs::read_to_string(&self.path)?);
        let (entries, _) = parse(&text);
        let mut sorted = BufWriter::new(File::create(&self.path)?);
        for entry in &entries {
            writeln!(sorted, "{}", serde_json::to_string(entry)?)?;
        }
        sorted.flush()?;
        match std::fs::remove_file(self.older()) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

/// Returns the time stamp in a line, as time since the harness started.
pub fn stamped(line: &str) -> Option<Duration> {
    first_stamp(line).and_then(parse_stamp).map(clock::wall_since_start)
}

/// Returns the time stamp in a line of a log, in seconds since 1970.
pub fn unix_stamp(line: &str) -> Option<f64> {
    let time = first_stamp(line).and_then(parse_stamp)?;
    Some(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64())
}

/// Returns the first word that looks like a time stamp, in plain or JSON logs.
fn first_stamp(line: &str) -> Option<&str> {
    line.split([' ', '"']).find(|word| word.len() >= 20 && word.as_bytes()[4] == b'-')
}

/// Reads `2026-01-31T23:59:59.123456Z`.
fn parse_stamp(stamp: &str) -> Option<SystemTime> {
    let (date, time) = stamp.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split(':');
    let hours: u64 = time.next()?.parse().ok()?;
    let minutes: u64 = time.next()?.parse().ok()?;
    let seconds: f64 = time.next()?.parse().ok()?;
    if !(1970..10_000).contains(&year) || !(1..=12).contains(&month) || !seconds.is_finite() {
        return None;
    }
    // Days since 1970-01-01 in the proleptic Gregorian calendar, years beginning in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let whole = u64::try_from(days).ok()? * 86_400 + hours * 3600 + minutes * 60;
    let since = Duration::from_secs(whole) + Duration::try_from_secs_f64(seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("2026-02-03T04:05:06.5Z", Some(1_770_091_506.5))]
    #[case("1970-01-01T00:00:00Z", Some(0.0))]
    #[case("2000-02-29T23:59:59.000001Z", Some(951_868_799.000001))]
    #[case("2026-13-03T04:05:06Z", None)]
    #[case("2026-02-03 04:05:06", None)]
    fn parses_stamps(#[case] stamp: &str, #[case] seconds: Option<f64>) {
        let since = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        assert_eq!(parse_stamp(stamp).map(since), seconds);
    }

    #[test]
    fn stamps_are_found_in_plain_and_json_lines() {
        let stamp = "2026-02-03T04:05:06.5Z";
        assert_eq!(first_stamp(&format!("{stamp}  INFO cpr_exec")), Some(stamp));
        assert_eq!(first_stamp(&format!("{{\"timestamp\":\"{stamp}\",\"level\":1}}")), Some(stamp));
    }

    #[test]
    fn rotation_keeps_the_newest_part() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("timeline.jsonl");
        let timeline = Timeline::create(&path).unwrap();
        for n in 1..=4 {
            timeline.say_at(Duration::from_secs(n), "harness", format!("line {n}"));
            timeline.rotate(60).unwrap();
        }
        timeline.say_at(Duration::from_secs(5), "harness", "line 5");
        timeline.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let has = |n: u32| text.contains(&format!("line {n}\""));
        assert_eq!([1, 2, 3, 4, 5].map(has), [false, false, true, true, true], "{text}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn finish_sorts_by_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("timeline.jsonl");
        let timeline = Timeline::create(&path).unwrap();
        timeline.say_at(Duration::from_secs(2), "harness", "second");
        timeline.say_at(Duration::from_secs(1), "vmm", "first");
        timeline.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.find("first") < text.find("second"), "{text}");
    }
}

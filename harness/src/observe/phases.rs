//! The phases of an update, taken from our VMM's log.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A phase of an update; the phases follow each other without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// From the request to leave the guest until every vCPU has.
    Pause,
    /// State is written to the channel and copied.
    Save,
    /// The CPR state is written and close-on-exec cleared on inherited descriptors.
    Publish,
    /// From `execve` until the new binary is in `main`.
    Exec,
    /// Inherited descriptors are adopted; command line, log and QMP are set up.
    Adopt,
    /// The state is read from the channel and parsed.
    Read,
    /// VM, memslots, chips and vCPUs are created in their power-on state.
    Build,
    /// The saved state is loaded into them.
    Load,
    /// The commit point: the fallback is given up and the vCPUs are told to run.
    Resume,
    /// Until the guest notices that it runs again.
    FirstRun,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 10] = [
        Self::Pause,
        Self::Save,
        Self::Publish,
        Self::Exec,
        Self::Adopt,
        Self::Read,
        Self::Build,
        Self::Load,
        Self::Resume,
        Self::FirstRun,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Save => "save",
            Self::Publish => "publish",
            Self::Exec => "exec",
            Self::Adopt => "adopt",
            Self::Read => "read",
            Self::Build => "build",
            Self::Load => "load",
            Self::Resume => "resume",
            Self::FirstRun => "first run",
        }
    }
}

/// One phase of one update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The phase.
    pub phase: Phase,
    /// When it began, as time since the start of the harness.
    pub begin: Duration,
    /// When it ended.
    pub end: Duration,
}

impl Span {
    /// How long it took.
    pub fn took(&self) -> Duration {
        self.end.saturating_sub(self.begin)
    }
}

/// The phases of one update that succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdatePhases {
    /// The spans, in order. [`Phase::FirstRun`] is there only if the guest's blackout is known.
    pub spans: Vec<Span>,
}

impl UpdatePhases {
    /// When it began.
    pub fn begin(&self) -> Duration {
        self.spans.first().map_or(Duration::ZERO, |span| span.begin)
    }

    /// When the last known phase ended.
    pub fn end(&self) -> Duration {
        self.spans.last().map_or(Duration::ZERO, |span| span.end)
    }

    /// How long `phase` took.
    pub fn took(&self, phase: Phase) -> Option<Duration> {
        self.spans.iter().find(|span| span.phase == phase).map(Span::took)
    }

    /// Adds the first run: the part of the guest's `blackout` that the other phases do not explain.
    /// The guest stopped somewhere within the pause, so the first run may have taken longer by as
    /// much.
    pub fn set_blackout(&mut self, blackout: Duration) {
        self.spans.retain(|span| span.phase != Phase::FirstRun);
        let begin = self.end();
        let end = begin.max(self.begin() + blackout);
        self.spans.push(Span { phase: Phase::FirstRun, begin, end });
    }
}

/// Formats the line from which [`updates`] reads the blackout that the guest saw.
pub fn blackout_line(blackout: Duration) -> String {
    format!("seen by the guest: {BLACKOUT}={}", blackout.as_micros())
}

const BLACKOUT: &str = "blackout_us";

/// The stamps of `cpr_state_load` at which the phases of a takeover end.
const TAKE_OVER: [(Phase, &str); 6] = [
    (Phase::Exec, "main"),
    (Phase::Adopt, "qmp"),
    (Phase::Read, "read"),
    (Phase::Build, "created"),
    (Phase::Load, "build"),
    (Phase::Resume, "resume"),
];

/// Extracts the successful updates from the lines of the VMM's log and of the harness, each with
/// its time; other lines are ignored. Updates with a missing stamp are left out, and so are those
/// that fell back to the old binary.
pub fn updates<'a>(lines: impl IntoIterator<Item = (Duration, &'a str)>) -> Vec<UpdatePhases> {
    let mut found: Vec<UpdatePhases> = Vec::new();
    let mut old = None;
    let mut loaded = false;
    for (time, line) in lines {
        if has_word(line, "cpr_exec") {
            (old, loaded) = (OldProcess::of(time, line), false);
        } else if has_word(line, "cpr_returned") {
            old = None;
        } else if has_word(line, "cpr_state_load") {
            let update = old.take().and_then(|old: OldProcess| old.taken_over(line));
            loaded = update.is_some();
            found.extend(update);
        } else if let Some(blackout) = number(line, BLACKOUT).filter(|_| loaded) {
            if let Some(update) = found.last_mut() {
                update.set_blackout(Duration::from_micros(blackout));
            }
            loaded = false;
        }
    }
    found
}

/// The phases of the old process.
struct OldProcess {
    /// When all vCPUs were stopped.
    paused: Duration,
    spans: Vec<Span>,
}

impl OldProcess {
    /// Parses the last line of the old process, written at `time`.
    fn of(time: Duration, line: &str) -> Option<Self> {
        let [save, publish] = ["save", "publish"].map(|stamp| number(line, stamp));
        let (save, publish) = (Duration::from_micros(save?), Duration::from_micros(publish?));
        let pause = Duration::from_micros(number(line, "pause_us")?);
        let paused = time.saturating_sub(publish);
        let span = |phase, begin, end| Span { phase, begin, end };
        let spans = vec![
            span(Phase::Pause, paused.saturating_sub(pause), paused),
            span(Phase::Save, paused, paused + save),
            span(Phase::Publish, paused + save, paused + publish),
        ];
        Some(Self { paused, spans })
    }

    /// Adds the phases of the new process, from the line that it wrote at the end of the takeover.
    fn taken_over(self, line: &str) -> Option<UpdatePhases> {
        let Self { paused, mut spans } = self;
        for (phase, stamp) in TAKE_OVER {
            let begin = spans.last()?.end;
            let end = paused + Duration::from_micros(number(line, stamp)?);
            spans.push(Span { phase, begin, end: end.max(begin) });
        }
        Some(UpdatePhases { spans })
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split([' ', '"']).filter(|word| !word.is_empty())
}

fn has_word(line: &str, word: &str) -> bool {
    words(line).any(|other| other == word)
}

/// The number after `key=`.
fn number(line: &str, key: &str) -> Option<u64> {
    words(line).find_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const EXEC: &str = "2026-11-27T02:30:00.000300Z  INFO cpr_vmm::migration::cpr::update: cpr_exec \
        command=\"/vmm\" pause_us=60 phases=\"save=150 publish=210\"";
    const LOAD: &str = "2026-11-27T02:30:00.003400Z  INFO cpr_vmm::vmm::incoming: cpr_state_load \
        run_state=Running downtime_us=3269 phases=\"main=1134 adopt=1322 parse=1458 log=1506 \
        signals=1540 ram=1557 qmp=1568 read=1756 created=2000 build=3257 resume=3269\"";
    const RETURNED: &str = "2026-11-27T02:30:00.002000Z  WARN cpr_vmm::vmm::start: cpr_returned \
        why=\"after read it received SIGABRT\"";

    fn at<'a>(lines: &[&'a str]) -> Vec<(Duration, &'a str)> {
        lines.iter().map(|line| (Duration::from_micros(10_210), *line)).collect()
    }

    fn names(updates: &[UpdatePhases]) -> Vec<String> {
        let span = |span: &Span| {
            let (begin, end) = (span.begin.as_micros(), span.end.as_micros());
            format!("{} {begin} {end}", span.phase.name())
        };
        updates.iter().map(|u| u.spans.iter().map(span).collect::<Vec<_>>().join(", ")).collect()
    }

    const PHASES: &str = "pause 9940 10000, save 10000 10150, publish 10150 10210, \
        exec 10210 11134, adopt 11134 11568, read 11568 11756, build 11756 12000, \
        load 12000 13257, resume 13257 13269";

    #[test]
    fn every_phase_has_a_begin_and_an_end() {
        let updates = updates(at(&["other", EXEC, "cpr_adopt fds=9", LOAD, EXEC, LOAD]));
        assert_eq!(names(&updates), [PHASES, PHASES]);
    }

    #[test]
    fn the_rest_of_the_blackout_is_the_first_run() {
        let blackout = blackout_line(Duration::from_micros(3500));
        let lines = [EXEC, LOAD, &blackout, &blackout, EXEC, LOAD];
        let updates = updates(at(&lines));
        let first_run = format!("{PHASES}, first run 13269 13440");
        assert_eq!(names(&updates), [first_run.as_str(), PHASES]);
        let all: Duration = updates[0].spans.iter().map(Span::took).sum();
        assert_eq!(all, Duration::from_micros(3500));
    }

    #[test]
    fn a_blackout_shorter_than_the_phases_makes_an_empty_first_run() {
        let blackout = blackout_line(Duration::from_micros(3000));
        let updates = updates(at(&[EXEC, LOAD, &blackout]));
        assert_eq!(updates[0].took(Phase::FirstRun), Some(Duration::ZERO));
    }

    #[rstest]
    #[case::not_loaded(&[EXEC])]
    #[case::of_nothing(&[LOAD])]
    #[case::given_back(&[EXEC, RETURNED, LOAD])]
    #[case::of_a_vmm_without_stamps(&["x cpr_exec command=\"/vmm\"", LOAD])]
    #[case::damaged(&[EXEC, "x cpr_state_load phases=\"main=1 read=\""])]
    #[case::measured_without_update(&["blackout_us=7"])]
    fn incomplete_updates_are_left_out(#[case] lines: &[&str]) {
        assert_eq!(updates(at(lines)), []);
    }

    #[test]
    fn phases_are_in_order_of_time() {
        let mut updates = updates(at(&[EXEC, LOAD]));
        updates[0].set_blackout(Duration::from_millis(9));
        let phases: Vec<_> = updates[0].spans.iter().map(|span| span.phase).collect();
        assert_eq!(phases, Phase::ALL);
    }
}

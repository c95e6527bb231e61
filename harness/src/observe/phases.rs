//! The phases of an update, from what our VMM has logged of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A phase of an update; they follow each other without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The vCPUs are asked to leave the guest, until all have.
    Pause,
    /// State to the channel, and its copy.
    Save,
    /// CPR state, and close-on-exec off what crosses.
    Publish,
    /// `execve`, until the new binary is in `main`.
    Exec,
    /// What has crossed becomes this process's; command line, log, QMP.
    Adopt,
    /// The state is read from the channel and taken apart.
    Read,
    /// VM, memslots, chips and vCPUs, as after power-on.
    Build,
    /// Each of them gets its state.
    Load,
    /// The way back is given up, and the vCPUs are told to run.
    Resume,
    /// Until the guest has noticed that it goes on.
    FirstRun,
}

impl Phase {
    /// All, in their order.
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

    /// In tables.
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
    /// Which.
    pub phase: Phase,
    /// When it began, since the start of the harness.
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
    /// In their order. [`Phase::FirstRun`] is there only where the guest's blackout is known.
    pub spans: Vec<Span>,
}

impl UpdatePhases {
    /// When it began.
    pub fn begin(&self) -> Duration {
        self.spans.first().map_or(Duration::ZERO, |span| span.begin)
    }

    /// When the last phase that is known ended.
    pub fn end(&self) -> Duration {
        self.spans.last().map_or(Duration::ZERO, |span| span.end)
    }

    /// How long `phase` took.
    pub fn took(&self, phase: Phase) -> Option<Duration> {
        self.spans.iter().find(|span| span.phase == phase).map(Span::took)
    }

    /// The guest stood still for `blackout`: what the other phases do not explain is the first
    /// run. Somewhere within the pause it stopped, so that may have taken longer by as much.
    pub fn set_blackout(&mut self, blackout: Duration) {
        self.spans.retain(|span| span.phase != Phase::FirstRun);
        let begin = self.end();
        let end = begin.max(self.begin() + blackout);
        self.spans.push(Span { phase: Phase::FirstRun, begin, end });
    }
}

/// What a line says, from which [`updates`] knows the blackout that the guest saw.
pub fn blackout_line(blackout: Duration) -> String {
    format!("seen by the guest: {BLACKOUT}={}", blackout.as_micros())
}

const BLACKOUT: &str = "blackout_us";

/// Where the phases of a take-over end, by the stamps of `cpr_state_load`.
const TAKE_OVER: [(Phase, &str); 6] = [
    (Phase::Exec, "main"),
    (Phase::Adopt, "qmp"),
    (Phase::Read, "read"),
    (Phase::Build, "created"),
    (Phase::Load, "build"),
    (Phase::Resume, "resume"),
];

/// The updates that succeeded, from the lines of the VMM's log and of the harness, each with its
/// time; other lines do not matter. An update of which a stamp is missing is left out, and so is
/// one that the new binary gave back.
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
    /// When all vCPUs stood still.
    paused: Duration,
    spans: Vec<Span>,
}

impl OldProcess {
    /// From the line that it wrote at `time`, last of all.
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

    /// With those of the new process, from the line that it wrote at its end.
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

/// What stands behind `key=`.
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

    fn told(updates: &[UpdatePhases]) -> Vec<String> {
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
    fn every_phase_has_its_begin_and_its_end() {
        let updates = updates(at(&["other", EXEC, "cpr_adopt fds=9", LOAD, EXEC, LOAD]));
        assert_eq!(told(&updates), [PHASES, PHASES]);
    }

    #[test]
    fn what_is_left_of_the_blackout_is_the_first_run() {
        let blackout = blackout_line(Duration::from_micros(3500));
        let lines = [EXEC, LOAD, &blackout, &blackout, EXEC, LOAD];
        let updates = updates(at(&lines));
        let first_run = format!("{PHASES}, first run 13269 13440");
        assert_eq!(told(&updates), [first_run.as_str(), PHASES]);
        let all: Duration = updates[0].spans.iter().map(Span::took).sum();
        assert_eq!(all, Duration::from_micros(3500));
    }

    #[test]
    fn a_guest_that_saw_less_than_the_host_has_a_first_run_of_nothing() {
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
    fn what_is_no_whole_update_is_left_out(#[case] lines: &[&str]) {
        assert_eq!(updates(at(lines)), []);
    }

    #[test]
    fn the_order_is_that_of_time() {
        let mut updates = updates(at(&[EXEC, LOAD]));
        updates[0].set_blackout(Duration::from_millis(9));
        let phases: Vec<_> = updates[0].spans.iter().map(|span| span.phase).collect();
        assert_eq!(phases, Phase::ALL);
    }
}

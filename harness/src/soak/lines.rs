//! Formats a soak as plain lines: one per interval, and the summary.

use std::time::Duration;

use super::board::{Blackouts, State, VmProgress};
use super::{Soaking, describe};

/// Formats the progress as one line.
pub fn interval(soaking: &Soaking) -> String {
    let lanes = soaking.board().lanes();
    let elapsed = soaking.elapsed();
    let memory = lanes.iter().filter_map(|lane| lane.memory_kib).map(|(_, now)| now).max();
    let states =
        [State::Boots, State::Runs, State::Gone, State::LeftOut, State::Failed].map(|state| {
            let count = lanes.iter().filter(|lane| lane.state == state).count();
            (count > 0).then(|| format!("{count} {}", state.name()))
        });
    let states: Vec<String> = states.into_iter().flatten().collect();
    format!(
        "{}  {}  {}; memory at most {} KiB; VMs: {}",
        clock(elapsed),
        updates(&lanes, elapsed),
        blackouts(soaking.board().blackouts()),
        memory.unwrap_or(0),
        states.join(", "),
    )
}

/// Formats the summary, without the failures.
pub fn summary(soaking: &Soaking, disk: u64) -> Vec<String> {
    let (lanes, elapsed) = (soaking.board().lanes(), soaking.elapsed());
    let setbacks: u32 = lanes.iter().map(|lane| lane.setbacks).sum();
    let mut lines = vec![format!(
        "\n{} of {} VM{} in {}; {setbacks} more were refused or undone, as expected",
        updates(&lanes, elapsed),
        lanes.len(),
        if lanes.len() == 1 { "" } else { "s" },
        clock(elapsed),
    )];
    lines.push(blackouts(soaking.board().blackouts()));
    lines.extend(lanes.iter().enumerate().map(|(index, lane)| of_vm(index, lane)));
    lines.push(format!("evidence: {:.1} MiB", disk as f64 / (1 << 20) as f64));
    lines
}

/// Formats the progress of one VM.
pub fn of_vm(index: usize, lane: &VmProgress) -> String {
    let mut line =
        format!("{}: {}, {} updates", describe(index, lane), lane.state.name(), lane.updates);
    if let (Some((first, now)), Some((fds, fds_now))) = (lane.memory_kib, lane.fds) {
        line.push_str(&format!(", memory {first} -> {now} KiB, descriptors {fds} -> {fds_now}"));
    }
    line
}

fn updates(lanes: &[VmProgress], elapsed: Duration) -> String {
    let updates: u32 = lanes.iter().map(|lane| lane.updates).sum();
    let rate = f64::from(updates) / elapsed.as_secs_f64().max(1e-3);
    format!("{updates} updates ({rate:.1}/s)")
}

/// Formats the percentiles of the blackouts.
pub fn blackouts(of: Blackouts) -> String {
    if of.count == 0 {
        return "no blackout seen yet".into();
    }
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let Blackouts { count, p50, p90, p99, max } = of;
    format!(
        "blackout p50 {:.2}, p90 {:.2}, p99 {:.2}, max {:.2} ms (n={count})",
        ms(p50),
        ms(p90),
        ms(p99),
        ms(max),
    )
}

fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::session::soak::Progress;
    use crate::soak::Limits;
    use crate::soak::cases::{SoakConfig, cases};

    #[test]
    fn lines_as_they_are_printed() {
        let soaking = Soaking::new(
            &cases(&SoakConfig { vms: 2, ..SoakConfig::default() }),
            Limits::default(),
        );
        let mut lines = vec![interval(&soaking)];
        for n in 1..=10 {
            soaking.board().begin(0, n);
            soaking.board().done(
                0,
                Progress {
                    updates: n,
                    setbacks: n / 5,
                    blackouts: vec![Duration::from_millis(n.into())],
                    memory_kib: 3000 + u64::from(n),
                    fds: 24,
                },
            );
        }
        soaking.board().set(1, State::Failed);
        lines.push(interval(&soaking));
        lines.extend(summary(&soaking, 3 << 19));
        let text = lines.join("\n");
        insta::with_settings!({filters => vec![
            (r"\d\d:\d\d:\d\d", "[time]"),
            (r"\([\d.]+/s\)", "([rate]/s)"),
        ]}, { insta::assert_snapshot!(text) });
    }
}

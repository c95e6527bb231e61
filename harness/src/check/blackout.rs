//! Checks that an update stops the guest only briefly, and that a refused update does not stop it.

use std::time::Duration;

use super::gaps::{Gaps, Refusal};
use super::{Check, Scene};
use crate::observe::patience::{measures, patient};

/// The `blackout` check.
pub const CHECK: Check = Check {
    name: "blackout",
    claim: "an update stops the guest for no longer than allowed, a refused update not at all",
    run,
};

/// Blackout that is always allowed: a busy host stops any process for a while.
const FLOOR: Duration = Duration::from_secs(2);
/// Multiple of the largest heartbeat gap in calm times that is also allowed.
const CALM_TIMES: u32 = 20;
/// Heartbeat gap that is always allowed around a refusal, for the same reason.
const REFUSED_FLOOR: Duration = Duration::from_secs(1);

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let Gaps { refusal, calm, asked, .. } = scene.gaps;
    if let Some(refusal) = refusal {
        judge_refusal(refusal, calm)?;
    }
    // What a scenario asks for holds on a CPU, not in an emulator.
    let asked = asked.filter(|_| measures());
    // An operator decides when a later VMM is started.
    let later = scene.handover.transfer().is_some_and(|transfer| transfer.later);
    let updated = scene.action.updated() && !later;
    match updated.then(|| (scene.gaps.blackout)()).flatten() {
        Some(blackout) => judge(blackout, calm, asked),
        None => Ok(()),
    }
}

fn judge(blackout: Duration, calm: Duration, asked: Option<Duration>) -> Result<(), String> {
    let limit = asked.unwrap_or_else(|| patient(FLOOR).max(calm * CALM_TIMES));
    if blackout <= limit {
        return Ok(());
    }
    Err(format!(
        "the guest stood still for {blackout:?}, at most {limit:?} is allowed (largest gap in calm times: {calm:?})"
    ))
}

fn judge_refusal(refusal: &Refusal, calm: Duration) -> Result<(), String> {
    let calm = calm.max(refusal.calm);
    let limit = patient(REFUSED_FLOOR).max(calm * CALM_TIMES);
    if refusal.during > limit {
        return Err(format!(
            "a refused update stopped the guest for {:?} (largest gap in calm times: {calm:?})",
            refusal.during
        ));
    }
    match refusal.sleeps {
        None | Some(0) => Ok(()),
        Some(_) => Err(format!(
            "a refused update paused vCPUs: their threads went to sleep, as never in calm times (largest gap between heartbeats: {:?})",
            refusal.during
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[rstest]
    #[case::as_always(270, 1, None, true)]
    #[case::at_the_floor(2000, 1, None, true)]
    #[case::above_it(2001, 1, None, false)]
    #[case::on_a_busy_host(2500, 125, None, true)]
    #[case::above_that(2501, 125, None, false)]
    #[case::as_asked(300, 1, Some(300), true)]
    #[case::above_what_was_asked(301, 125, Some(300), false)]
    fn updates(
        #[case] blackout: u64,
        #[case] calm: u64,
        #[case] asked: Option<u64>,
        #[case] good: bool,
    ) {
        assert_eq!(judge(ms(blackout), ms(calm), asked.map(ms)).is_ok(), good);
    }

    #[rstest]
    #[case::at_the_floor(1000, 1, None, true)]
    #[case::above_it(1001, 1, Some(0), false)]
    #[case::on_a_busy_host(2000, 100, Some(0), true)]
    #[case::above_that(2001, 100, None, false)]
    #[case::a_short_pause(1, 1, Some(1), false)]
    fn refusals(
        #[case] during: u64,
        #[case] calm: u64,
        #[case] sleeps: Option<u64>,
        #[case] good: bool,
    ) {
        let refusal = Refusal { took: ms(during), calm: ms(calm), during: ms(during), sleeps };
        assert_eq!(judge_refusal(&refusal, ms(1)).is_ok(), good);
    }
}

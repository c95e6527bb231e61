//! Judges whether a timer still runs at its speed.
//!
//! Any single interrupt may be late, because the host did not let the guest run. Of many, the
//! promptest one is not: if even that takes longer than in the calm stretch, the timer is slow. On a host
//! so busy that it interrupts the guest in every period, even the promptest is late; so the timer is slow
//! only if it is so in the time that the guest has run, too.

/// How many interrupts the calm stretch has.
pub const CALM: u64 = 32;
/// How many interrupts are judged together after that: enough that even on a host with ten busy
/// threads a core one of them is prompt.
pub const WINDOW: u64 = 128;
/// How much slower than in the calm stretch a timer may be: half as slow again.
const SLOWER: u64 = SCALE / 2;
/// How much longer the promptest interrupt takes of a slow timer, in time that the guest has run.
const LONGER: u64 = SCALE / 16;
/// A quotient of one.
pub const SCALE: u64 = 1024;

/// A timer is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// What the promptest interrupt may take at most, in 1/1024 of what it should take.
    pub most: u64,
    /// What it took.
    pub took: u64,
}

/// What the interrupts so far took, as multiples of what they should take.
#[derive(Default)]
pub struct Speed {
    seen: u64,
    /// The least of this window.
    least: u64,
    /// The promptest of this window among those that tell how long the guest has run, and how long that
    /// was.
    promptest_run: Option<(u64, u64)>,
    /// The least of the calm stretch; 0 until that is over.
    calm: u64,
}

impl Speed {
    /// Takes note of an interrupt that should come after `wanted` TSC ticks and came after `took`, in which
    /// the guest has run for `ran`; `None` if it was halted, which does not tell.
    pub fn judge(&mut self, wanted: u64, took: u64, ran: Option<u64>) -> Result<(), Slow> {
        if self.seen == 0 {
            (self.least, self.promptest_run) = (u64::MAX, None);
        }
        let quotient = |time: u64| time.saturating_mul(SCALE) / wanted.max(1);
        let took = quotient(took);
        self.least = self.least.min(took);
        if let Some(ran) = ran
            && self.promptest_run.is_none_or(|(least, _)| took < least)
        {
            self.promptest_run = Some((took, quotient(ran)));
        }
        self.seen += 1;
        let is_calm = self.calm == 0;
        if self.seen < if is_calm { CALM } else { WINDOW } {
            return Ok(());
        }
        self.seen = 0;
        if is_calm {
            self.calm = self.least.max(1);
            return Ok(());
        }
        let most = self.calm.max(SCALE) + SLOWER;
        let was_interrupted = self.promptest_run.is_some_and(|(_, ran)| ran <= SCALE + LONGER);
        match self.least > most && !was_interrupted {
            true => Err(Slow { most, took: self.least }),
            false => Ok(()),
        }
    }
}

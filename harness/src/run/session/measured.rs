//! An update during which the host watches the guest.

use std::sync::mpsc::channel;
use std::time::Duration;

use crate::check::Action;
use crate::observe::patience::patient;
use crate::observe::poll::Deadline;
use crate::observe::watch;
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::run::verdict::{HostSeen, Touch};
use crate::scenario::{Channel, Migrate, Mode};

/// Time limit per GiB of the guest's RAM: enough for an otherwise idle host that emulates.
const FOR_A_GIB: Duration = Duration::from_secs(30);
/// Base time limit, for everything else that is awaited here.
const AT_LEAST: Duration = Duration::from_secs(30);

impl Session<'_> {
    /// Updates once and measures the update, from the host too, unless RAM is copied: then the host
    /// would have to watch two copies.
    pub(super) fn measured_update(&mut self, mode: Mode) -> Result<Action, StepError> {
        let migrate = Migrate { mode, ..Migrate::default() };
        if mode == Mode::Normal {
            return self.update(&Migrate { channel: Channel::Unix, ..migrate });
        }
        let (page, cpus) = (self.page()?, self.case.vm.cpus);
        let gib = u32::try_from(self.case.vm.memory.0.div_ceil(1 << 30)).unwrap_or(u32::MAX);
        let limit = patient(AT_LEAST + FOR_A_GIB.saturating_mul(gib));
        let touches = page.read().is_ok_and(|view| watch::share(&view, cpus).is_some());
        let missed = |what: &str| StepError::Guest {
            what: what.to_owned(),
            limit,
            seen: "the counters in its mailbox do not show it".to_owned(),
        };
        let before = match touches {
            true => Some(
                watch::sweep(&page, cpus, Deadline::after(limit))
                    .ok_or_else(|| missed("the guest to touch every page"))?,
            ),
            false => None,
        };
        let (over, is_over) = channel();
        let deadline = Deadline::after(limit + self.options.patience.update);
        let (action, watched) = std::thread::scope(|scope| {
            let watching = scope.spawn(move || watch::watch(&page, cpus, &is_over, deadline));
            let action = self.update(&migrate);
            if action.as_ref().is_ok_and(Action::updated) {
                // Fails if the watcher has given up, which does not matter.
                let _ = over.send(());
            }
            drop(over);
            (action, watching.join().ok().flatten())
        });
        let action = action?;
        if action.updated() {
            let watched =
                watched.ok_or_else(|| missed("the guest to touch every page after the update"))?;
            let measuring = self.measuring.take().zip(watched.guest);
            self.measuring = measuring.map(|(measuring, seen)| measuring.ended(seen));
            let touch = before.zip(watched.touched);
            self.host_seen.push(HostSeen {
                blackout: watched.blackout,
                touch: touch.map(|(before, after)| Touch { before, after }),
            });
        }
        Ok(action)
    }
}

//! A crash or a hang of the main thread in the middle of an update, before exec: another thread
//! undoes what is half done and goes on. A panic is caught where it is.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use cpr_qmp::message::QmpError;
use cpr_qmp::run_state::RunState;

use super::{Vmm, commands};
use crate::config::Switch;
use crate::migration::cpr::fall_back::stand_in::{StandIn, StandInError};
use crate::migration::cpr::rehearsal;
use crate::migration::cpr::update::{self, Plan, UpdateError, Walk};
use crate::qmp::ConnectionId;

/// What it takes to undo a part of an update whose guards are lost with their thread.
#[derive(Debug)]
pub(super) struct Undo {
    run_state: RunState,
    /// Where the state went.
    channel: Option<PathBuf>,
    /// Descriptors that stay open: all that were before this update.
    kept: BTreeSet<RawFd>,
    /// Those of them that are not closed on exec.
    inherited: Vec<RawFd>,
    /// Clients were told that the guest has stopped.
    stopped: bool,
    /// A rehearsal was going on before.
    rehearsed: bool,
}

/// The main thread, while another one stands by.
pub(super) struct StoodInFor<'a> {
    vmm: &'a mut Vmm,
    stand_in: StandIn,
}

impl Vmm {
    /// For a part of an update that takes at most `deadline`; `plan` is what it begins with.
    pub(super) fn stood_in_for(
        &mut self,
        deadline: Duration,
        plan: Option<&Plan>,
    ) -> Result<StoodInFor<'_>, StandInError> {
        let kept = open_descriptors();
        let mut kept = kept.map_err(|source| StandInError::System("read /proc/self/fd", source))?;
        if let Some(plan) = plan {
            kept.retain(|fd| !plan.fds().contains(fd));
        }
        self.undo = Some(Undo {
            run_state: self.machine.run_state(),
            channel: plan.map(|plan| plan.channel().to_owned()),
            kept,
            inherited: plan.map_or_else(Vec::new, |plan| plan.inherited().to_vec()),
            stopped: false,
            rehearsed: self.rehearsing.is_some(),
        });
        // SAFETY: the VMM is the main thread's, which uses it until it has stopped for ever; all
        // else that it shares with others is behind locks and channels.
        let stand_in = unsafe { StandIn::prepare(deadline, &raw mut *self, go_on) };
        match stand_in {
            Ok(stand_in) => Ok(StoodInFor { vmm: self, stand_in }),
            Err(error) => {
                self.undo = None;
                Err(error)
            }
        }
    }

    /// What the guards would have done.
    fn undo(&mut self, undo: &Undo) {
        // The guest first: files can make one wait.
        self.machine.connect_irqfd();
        match undo.run_state {
            RunState::Running => self.machine.resume(),
            before => self.machine.set_run_state(before),
        }
        if !undo.rehearsed {
            // Its descriptors are closed below, and its child is ended.
            std::mem::forget(self.rehearsing.take());
        }
        rehearsal::end_lost();
        for fd in open_descriptors().unwrap_or_default() {
            // SAFETY: the owner of what was opened since is a thread that does nothing any more;
            // the flag of the others is what it was before.
            unsafe {
                if !undo.kept.contains(&fd) {
                    libc::close(fd);
                } else if undo.channel.is_some() && !undo.inherited.contains(&fd) {
                    libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
                }
            }
        }
        if let Some(channel) = &undo.channel {
            // It fails where there is no file, and then there is no state in it.
            let _ = File::options()
                .write(true)
                .truncate(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(channel);
        }
    }

    fn tell_crash(&mut self, why: &str, stopped: bool) {
        tracing::error!(why, "update_crashed");
        let error = format!(
            "the update crashed in this VMM, which goes on: {why}; that is a bug in it: replace it when you can"
        );
        self.qmp.refuse_in_flight(&QmpError::generic(&error));
        if !self.migration.under_way() {
            return;
        }
        update::tell_failure(&mut self.qmp, &mut self.migration, error, stopped);
    }
}

impl StoodInFor<'_> {
    /// Does it; `None` if it panicked, which is told. Says too whether clients were told that the
    /// guest has stopped.
    pub(super) fn act<T>(self, part: impl FnOnce(&mut Vmm) -> T) -> Option<(T, bool)> {
        let Self { vmm, stand_in } = self;
        let result = catch_unwind(AssertUnwindSafe(|| part(vmm)));
        // Nothing of it is open when somebody hears how it ended.
        drop(stand_in);
        #[cfg(feature = "failpoints")]
        crate::failpoints::relieve();
        let stopped = vmm.undo.take().is_some_and(|undo| undo.stopped);
        match result {
            Ok(result) => Some((result, stopped)),
            Err(panic) => {
                let said = panic.downcast_ref::<String>().map(String::as_str);
                let said = said.or(panic.downcast_ref::<&str>().copied());
                let said = said.unwrap_or("without a word");
                vmm.tell_crash(&format!("it panicked: {said}"), stopped);
                None
            }
        }
    }
}

impl Vmm {
    /// The answer to `migrate` is on its way before the process is replaced.
    pub(super) fn answer_and_update(&mut self, client: ConnectionId, plan: Plan) {
        let stood_in_for = match self.stood_in_for(plan.deadline(), Some(&plan)) {
            Ok(stood_in_for) => stood_in_for,
            Err(error) => return self.qmp.respond(client, Err(commands::generic(error))),
        };
        let failed = stood_in_for.act(|vmm| {
            vmm.qmp.respond(client, commands::done());
            vmm.walk(plan)
        });
        if let Some((error, stopped)) = failed {
            let (qmp, migration) = (&mut self.qmp, &mut self.migration);
            update::tell_failure(qmp, migration, error.to_string(), stopped);
        }
    }

    /// Returns only if it failed.
    fn walk(&mut self, plan: Plan) -> UpdateError {
        let mut nowhere = false;
        let mut walk = Walk {
            machine: &mut self.machine,
            qmp: &mut self.qmp,
            migration: &mut self.migration,
            log: self.log.as_deref(),
            signals: self.signals.ends(),
            parameters: &self.parameters,
            helper: self.config.x_mm_helper == Switch::On,
            stopped: self.undo.as_mut().map_or(&mut nowhere, |undo| &mut undo.stopped),
        };
        walk.update(plan)
    }
}

/// On the thread that stands in.
fn go_on(vmm: *mut Vmm, why: &str) {
    // SAFETY: the main thread has stopped for ever, and nobody else had a reference to it.
    let mut vmm = unsafe { vmm.read() };
    if let Some(undo) = vmm.undo.take() {
        vmm.undo(&undo);
        vmm.tell_crash(why, undo.stopped);
    }
    let status = vmm.run();
    // What the main thread would return: it never does.
    std::process::exit(status.into());
}

fn open_descriptors() -> std::io::Result<BTreeSet<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut open: BTreeSet<RawFd> = numbers.filter(|fd| *fd > 2).collect();
    // That of the directory itself is closed now.
    // SAFETY: only asks for the flags of a number.
    open.retain(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0);
    Ok(open)
}

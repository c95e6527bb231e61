//! The fallback: from adopt to the first `KVM_RUN` whatever goes wrong makes this process the old
//! binary again. No vCPU has run, so the guest's RAM is what it was, and the old binary continues
//! from the same saved state.
//!
//! Before exec the same triggers do the same for a process that crashes or hangs in an update: it
//! executes its own binary again, from the state that it has saved already, or saves it on the way
//! (`machine::salvage`). And what a process cannot do for itself any more, because it has died or
//! does not come to an end, its [keeper](crate::keeper) does in its place.
//!
//! An old binary that was returned to and fails too ends, and leaves the guest to the keeper; where
//! there is none, it keeps the guest's RAM and state where an operator finds them (`stranded`).

mod plan;
mod record;
mod stranded;
mod text;
pub mod traffic;
mod triggers;

use std::fmt;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU8, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;

pub use plan::{CRASHED, Plan, Program, Role};
pub use record::{Record, RecordError, strings};
use triggers::TriggerError;
pub use triggers::Triggers;

use crate::keeper::Ending;
use crate::keeper::commit::CommitPage;
use crate::private_file::Retraction;

/// The environment variable by which an old binary learns why it is executed again.
pub const FAILED_NAME: &str = "CPR_EXEC_FAILED";
/// Bytes of the variable, its name and value.
const FAILED_SIZE: usize = 2048;
/// The deadline's signal, and the one by which other threads hand over to the main one.
const ALARM: Signal = Signal::SIGALRM;

/// How to go back, while this process takes over.
static WAY_BACK: AtomicPtr<Plan> = AtomicPtr::new(ptr::null_mut());
/// How to continue the guest that this process runs.
static LIVE: AtomicPtr<Plan> = AtomicPtr::new(ptr::null_mut());
static STAGE: AtomicU8 = AtomicU8::new(IDLE);
/// Nothing to go back to, or no more.
const IDLE: u8 = 0;
/// Whoever fails first makes the process go back.
const ARMED: u8 = 1;
/// Somebody has, and is writing down why.
const CLAIMED: u8 = 2;
/// It is written down; the main thread goes.
const READY: u8 = 3;
/// The thread that has claimed it.
static CLAIMER: AtomicI32 = AtomicI32::new(0);
/// How often the main thread yields to one that writes down why.
const PATIENCE: u32 = 1_000_000;

/// Why there is no way back.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// A trigger.
    #[error("cannot prepare to go back to the old binary: {0}")]
    Trigger(#[from] TriggerError),
    /// A descriptor.
    #[error("cannot duplicate descriptor {fd} for going back to the old binary: {errno}")]
    Reserve {
        /// Which.
        fd: RawFd,
        /// Why.
        errno: Errno,
    },
    /// This process is itself the new half of an update that is not over.
    #[error("Guest is waiting for an incoming migration")]
    Taken,
}

/// The process goes back when something fails, until [`Armed::commit`].
///
/// Dropping it changes nothing: it is dropped where an error unwinds, and that is not yet the end.
pub struct Armed {
    triggers: std::mem::ManuallyDrop<Option<Triggers>>,
}

/// On the main thread, which is the only one: from now on a failure makes this process go back by
/// `record`, or strand it.
///
/// Where no trigger can be had, this process has less than a VMM needs: the keeper continues in its
/// place. Where there is none, a new binary goes back at once, and an old one that was returned to
/// does without.
pub fn arm(record: &Record, role: Role) -> Result<Armed, ArmError> {
    let returned = matches!(role, Role::Returned(_));
    // Armed before its triggers: then it is this that failed.
    replace(&WAY_BACK, Some(Arc::new(Plan::new(record, role))));
    STAGE.store(ARMED, Ordering::SeqCst);
    // A returned one has all the time there is: nobody else is to go on in this process.
    let deadline = (!returned).then(|| Duration::from_millis(record.deadline_ms));
    let triggers = Triggers::install().and_then(|mut triggers| {
        if returned {
            // `Plan::go` has left it so.
            triggers.alarm_was_default();
        }
        triggers.hook_panics();
        triggers.set_deadline(deadline)?;
        Ok(triggers)
    });
    let triggers = match triggers {
        Ok(triggers) => Some(triggers),
        Err(error) => {
            let error = ArmError::from(error);
            if !returned {
                if let Some(plan) = way_back() {
                    plan.leave_to_keeper(&error.to_string());
                }
                return Err(error);
            }
            // SAFETY: the default disposition. `Plan::go` has left it ignored.
            unsafe { libc::signal(ALARM as i32, libc::SIG_DFL) };
            tracing::warn!(%error, "cpr_triggers_missing");
            None
        }
    };
    Ok(Armed { triggers: std::mem::ManuallyDrop::new(triggers) })
}

/// Puts a plan in its place. While nobody is about to go by the one before: before there are other
/// threads, or on the main thread. The keeper goes by the one that it finds when this process has
/// ended.
fn replace(place: &AtomicPtr<Plan>, plan: Option<Arc<Plan>>) {
    let new = plan.map_or(ptr::null_mut(), |plan| Arc::into_raw(plan).cast_mut());
    let old = place.swap(new, Ordering::SeqCst);
    if !old.is_null() {
        // SAFETY: it came from `into_raw`, and nobody uses it: the caller's promise.
        let old = unsafe { Arc::from_raw(old) };
        // Of two ways back only one has duplicates of descriptors.
        old.release();
    }
}

/// From now on the keeper, and this process if it crashes while it is [`protected`], go by `plan`.
pub fn live(plan: Option<Arc<Plan>>) {
    replace(&LIVE, plan);
}

/// What takes back the state of an update that fails in this process. Empty without an update.
static RETRACTION: AtomicPtr<Retraction> = AtomicPtr::new(ptr::null_mut());

/// Whoever continues the guest takes this back, until the result is dropped.
pub fn retracted(retraction: Retraction) -> Retracted {
    RETRACTION.store(Box::into_raw(Box::new(retraction)), Ordering::SeqCst);
    Retracted
}

/// See [`retracted`].
#[must_use = "dropping it leaves the state where it is"]
pub struct Retracted;

impl Drop for Retracted {
    fn drop(&mut self) {
        let old = RETRACTION.swap(ptr::null_mut(), Ordering::SeqCst);
        if !old.is_null() {
            // SAFETY: it came from a box, and whoever could use it is this thread.
            drop(unsafe { Box::from_raw(old) });
        }
    }
}

/// Async-signal-safe.
fn retract() {
    // SAFETY: null, or a box that the thread which could free it does not free any more.
    if let Some(retraction) = unsafe { RETRACTION.load(Ordering::SeqCst).as_ref() } {
        retraction.carry_out();
    }
}

/// The plan that counts: that of the take-over as long as there is one.
fn plan() -> Option<&'static Plan> {
    way_back().or_else(|| {
        // SAFETY: it came from `into_raw` and is freed by `replace` only, when nobody uses it.
        unsafe { LIVE.load(Ordering::SeqCst).as_ref() }
    })
}

fn way_back() -> Option<&'static Plan> {
    // SAFETY: as in `plan`.
    unsafe { WAY_BACK.load(Ordering::SeqCst).as_ref() }
}

/// While it lives, a crash or a hang of the main thread makes this process continue the guest by
/// what [`live`] was given.
pub struct Protected {
    _triggers: Triggers,
}

/// Protects what the main thread does within `deadline`.
pub fn protected(deadline: Duration) -> Result<Protected, ArmError> {
    if way_back().is_some() || STAGE.load(Ordering::SeqCst) != IDLE {
        return Err(ArmError::Taken);
    }
    let mut triggers = Triggers::install()?;
    STAGE.store(ARMED, Ordering::SeqCst);
    triggers.set_deadline(Some(deadline))?;
    Ok(Protected { _triggers: triggers })
}

impl Drop for Protected {
    fn drop(&mut self) {
        disarm();
    }
}

fn disarm() {
    if STAGE.compare_exchange(ARMED, IDLE, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        // Another thread was faster.
        go_if_armed(format_args!(""));
    }
}

/// What the keeper does, in its own process.
pub fn continue_guest(ending: Ending, page: &CommitPage) -> ! {
    // SAFETY: the process that could free it has ended.
    match unsafe { LIVE.load(Ordering::SeqCst).as_ref() } {
        Some(plan) => plan.go_as_keeper(ending, page),
        None => crate::sys::exit(0),
    }
}

impl Armed {
    /// Makes sure that nothing which is closed from now on is missing when the process goes back.
    pub fn reserve(&self) -> Result<(), ArmError> {
        let reserved = way_back().map_or(Ok(()), |plan| plan.reserve(None, |_| true));
        reserved.map_err(|(fd, errno)| ArmError::Reserve { fd, errno })
    }

    /// Goes back by another record, of which the `live` descriptors are as they are now and the
    /// others as they were at adopt. While there is one thread.
    pub fn update(&self, record: &Record, live: &[RawFd]) -> Result<(), ArmError> {
        let new = Plan::new(record, Role::New);
        let reserved = new.reserve(way_back(), |fd| live.contains(&fd));
        reserved.map_err(|(fd, errno)| ArmError::Reserve { fd, errno })?;
        replace(&WAY_BACK, Some(Arc::new(new)));
        Ok(())
    }

    /// Goes back after so much time; `None`: as long as it takes.
    pub fn set_deadline(&mut self, after: Option<Duration>) -> Result<(), ArmError> {
        match &mut *self.triggers {
            Some(triggers) => Ok(triggers.set_deadline(after)?),
            None => Ok(()),
        }
    }

    /// Nothing makes this process go back any more: the guest may run.
    ///
    /// Ends this process where the keeper was faster.
    pub fn commit(self) -> Committed {
        disarm();
        Committed { _triggers: std::mem::ManuallyDrop::into_inner(self.triggers) }
    }
}

/// A way back that is not needed any more; dropping this clears it away.
#[must_use = "clearing it away can wait until the guest runs"]
pub struct Committed {
    _triggers: Option<Triggers>,
}

impl Drop for Committed {
    fn drop(&mut self) {
        replace(&WAY_BACK, None);
    }
}

/// True where a failure is not the end.
pub fn is_armed() -> bool {
    STAGE.load(Ordering::SeqCst) != IDLE
}

/// Makes this process go back because of `why`. Returns where there is nothing to go back to.
///
/// On any thread, and in a signal handler: `why` must then be made of what needs no memory.
pub fn go_if_armed(why: fmt::Arguments<'_>) {
    let Some(plan) = plan() else { return };
    // SAFETY: a system call without arguments.
    let here = unsafe { libc::syscall(libc::SYS_gettid) } as libc::pid_t;
    let claimed = match STAGE.compare_exchange(ARMED, CLAIMED, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {
            CLAIMER.store(here, Ordering::SeqCst);
            // SAFETY: nobody else has claimed it, and it is read once it is READY.
            unsafe { plan.set_why(why) };
            STAGE.store(READY, Ordering::SeqCst);
            true
        }
        Err(IDLE) => return,
        // It failed once more while it wrote down why: what there is must do.
        Err(CLAIMED) if CLAIMER.load(Ordering::SeqCst) == here => {
            STAGE.store(READY, Ordering::SeqCst);
            true
        }
        Err(_) => false,
    };
    // SAFETY: system calls that take numbers, and are async-signal-safe.
    unsafe {
        if here == plan.main {
            let mut patience = PATIENCE;
            while STAGE.load(Ordering::SeqCst) != READY && patience > 0 {
                libc::sched_yield();
                patience -= 1;
            }
            plan.go();
        }
        // One signal: a second could reach the old binary before it has a handler.
        if claimed {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), plan.main, ALARM as i32);
        }
        loop {
            libc::pause();
        }
    }
}

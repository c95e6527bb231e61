//! The plan of a fallback, prepared in advance: the remaining steps are safe in a signal handler,
//! or in the keeper of a process that has died.

use std::ffi::{CString, c_char};
use std::fmt;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::SigSet;

use super::super::rehearsal;
use super::super::variables::STATE;
use super::record::{Record, strings};
use super::stranded::{CRASHED, StrandedResources, strand};
use super::text::Variable;
use super::traffic::Traffic;
use super::{ALARM, FAILED_NAME, FAILED_SIZE};
use crate::end_signals::END_SIGNALS;
use crate::keeper::commit::{Claim, CommitPage, PAGE_FD};
use crate::keeper::{self, Ending};
use crate::logging::LOG_FD;
use crate::machine::salvage::Salvage;
use crate::migration::cpr::fd_names::{DUMP_FD, SAVED_FD, TRAFFIC_FD};
use crate::sys;
use crate::vcpu::raw::SalvageError;

/// How many milliseconds the vCPUs have to leave the guest, in a process that continues in itself.
const HALT: u32 = 1000;
/// The role of this process, which decides who continues the guest if it fails.
#[derive(Clone)]
pub enum Role {
    /// The new binary: if it fails, the old one continues.
    New,
    /// The old binary, executed again after this failure of the new one: if it fails too, the
    /// keeper continues, if there is one.
    Returned(String),
    /// The process that runs the guest; it can be saved as it is if it has not saved itself.
    Live(Option<Arc<Salvage>>),
}

/// A descriptor that the old binary needs under the same number, even if that has been reused.
struct InheritedFd {
    fd: RawFd,
    /// A duplicate; -1 while there is none and `fd` is untouched.
    reserve: AtomicI32,
}

/// The program to execute. It stays the same for the life of the process.
pub struct Program {
    why: Box<Variable<FAILED_SIZE>>,
    argv: Strings,
    environment: Strings,
    mask: libc::sigset_t,
}

/// Everything that a fallback needs.
pub struct Plan {
    role: Role,
    /// Only this thread falls back: it owns the children and the parent-death signal.
    pub(super) main: libc::pid_t,
    program: Arc<Program>,
    /// `CPR_EXEC_STATE=N`, the first entry of the environment.
    _state: CString,
    environment: Vec<*const c_char>,
    binary: RawFd,
    crossing: Vec<InheritedFd>,
    inherited: Vec<RawFd>,
    dump: RawFd,
    traffic: Traffic,
    traffic_fd: RawFd,
    page: Option<Arc<CommitPage>>,
    /// Whether the process that holds the old address space can continue the guest; an older VMM's
    /// cannot.
    has_keeper: bool,
    kept: StrandedResources,
}

// SAFETY: `why` is written by the one thread that has claimed the fallback (`super::CLAIMED`), or
// by the keeper of a process that has ended, and read only after that; the pointers lead into
// strings owned by this object, which nothing else changes.
unsafe impl Sync for Plan {}
// SAFETY: as above.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Program {}
// SAFETY: as above.
unsafe impl Send for Program {}

struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new(owned: Vec<CString>, last: Option<*const c_char>) -> Self {
        let pointers = owned.iter().map(|s| s.as_ptr()).chain(last).chain([ptr::null()]).collect();
        Self { _owned: owned, pointers }
    }
}

impl Program {
    /// Creates the program that `record` describes.
    pub fn new(record: &Record) -> Self {
        let ours = [STATE, FAILED_NAME].map(|name| format!("{name}="));
        let foreign =
            |entry: &CString| !ours.iter().any(|n| entry.to_bytes().starts_with(n.as_bytes()));
        let why = Box::new(Variable::new(FAILED_NAME));
        let environment = strings(&record.environment).into_iter().filter(foreign).collect();
        Self {
            argv: Strings::new(strings(&record.argv), None),
            environment: Strings::new(environment, Some(why.as_ptr())),
            mask: held_mask(record),
            why,
        }
    }
}

impl Plan {
    /// Creates the plan that `record` describes.
    pub fn new(record: &Record, role: Role) -> Self {
        Self::with(Arc::new(Program::new(record)), record, role, None)
    }

    /// Creates the plan with an existing program, and with the keeper's page if there is one.
    pub fn with(
        program: Arc<Program>,
        record: &Record,
        role: Role,
        page: Option<Arc<CommitPage>>,
    ) -> Self {
        let state = CString::new(format!("{STATE}={}", record.state)).expect("it has no NUL");
        let environment = [state.as_ptr()].into_iter().chain(program.environment.pointers.clone());
        let environment = environment.collect();
        let crossing = |fd| InheritedFd { fd, reserve: AtomicI32::new(-1) };
        let named = |wanted: &str| record.fds.iter().find(|n| n.name == wanted).map(|n| n.fd);
        let page = page.or_else(|| {
            // SAFETY: a number that is not open gives EBADF.
            let fd = unsafe { BorrowedFd::borrow_raw(named(PAGE_FD)?) };
            CommitPage::adopt(fd.try_clone_to_owned().ok()?).ok().map(Arc::new)
        });
        Self {
            role,
            main: nix::unistd::gettid().as_raw(),
            program,
            _state: state,
            environment,
            binary: record.binary,
            crossing: record.numbers().map(crossing).collect(),
            inherited: record.inherited.clone(),
            dump: named(DUMP_FD).unwrap_or(-1),
            traffic: Traffic::default(),
            traffic_fd: named(TRAFFIC_FD).unwrap_or(-1),
            page,
            has_keeper: named(PAGE_FD).is_some() && record.helper > 0,
            kept: StrandedResources {
                pid: record.pid,
                keeper: record.helper,
                ram: record
                    .fds
                    .iter()
                    .filter(|n| n.name.starts_with("ram."))
                    .map(|n| n.fd)
                    .collect(),
                saved: named(SAVED_FD),
                log: named(LOG_FD),
            },
        }
    }

    /// Adds the traffic counted on the sockets of the QMP clients.
    pub fn with_traffic(self, traffic: Traffic) -> Self {
        Self { traffic, ..self }
    }

    /// Duplicates every descriptor, so that closing the original does no harm. The source is the
    /// number itself if that is `live`, otherwise the duplicate in `before`, as the number may have
    /// been reused.
    pub fn reserve(
        &self,
        before: Option<&Self>,
        live: impl Fn(RawFd) -> bool,
    ) -> Result<(), (RawFd, Errno)> {
        for InheritedFd { fd, reserve } in &self.crossing {
            let earlier = before.filter(|_| !live(*fd)).and_then(|before| before.reserved(*fd));
            let source = earlier.unwrap_or(*fd);
            // SAFETY: a number that is not open gives EBADF.
            let borrowed = unsafe { BorrowedFd::borrow_raw(source.max(0)) };
            match fcntl(borrowed, FcntlArg::F_DUPFD_CLOEXEC(3)) {
                Ok(copy) => reserve.store(copy, Ordering::Relaxed),
                Err(errno) => {
                    self.release();
                    return Err((*fd, errno));
                }
            }
        }
        Ok(())
    }

    fn reserved(&self, fd: RawFd) -> Option<RawFd> {
        let crossing = self.crossing.iter().find(|crossing| crossing.fd == fd)?;
        Some(crossing.reserve.load(Ordering::Relaxed)).filter(|reserve| *reserve >= 0)
    }

    /// Closes the duplicates.
    pub fn release(&self) {
        for InheritedFd { reserve, .. } in &self.crossing {
            let reserve = reserve.swap(-1, Ordering::Relaxed);
            if reserve >= 0 {
                // SAFETY: `reserve` made this descriptor, and nothing else knows its number.
                unsafe { libc::close(reserve) };
            }
        }
    }

    /// Records why the process falls back.
    ///
    /// # Safety
    /// No other thread may read or write the reason during the call.
    pub(super) unsafe fn set_why(&self, why: fmt::Arguments<'_>) {
        let crashed = if matches!(self.role, Role::Live(_)) { CRASHED } else { "" };
        // SAFETY: the caller's promise.
        unsafe { self.program.why.set(format_args!("{crashed}{why}")) };
    }

    fn why(&self) -> &str {
        // SAFETY: the thread that claimed the fallback wrote it before this is called.
        unsafe { self.program.why.value() }
    }

    /// Executes the old binary, or at least keeps the guest. Runs on the main thread, possibly in a
    /// signal handler: nothing here allocates, locks or unwinds.
    pub(super) fn go(&self) -> ! {
        #[cfg(feature = "failpoints")]
        crate::failpoints::relieve();
        block_signals();
        match &self.role {
            Role::New => {
                keeper::abandon_newest();
                let errno = self.execute();
                let why = self.why();
                self.leave_to_keeper(why);
                self.strand(why, format_args!("cannot exec the old binary: {}", errno.desc()))
            }
            Role::Returned(first) => {
                keeper::abandon_newest();
                self.leave_to_keeper(first);
                self.strand(first, format_args!("{}", self.why()))
            }
            Role::Live(salvage) => {
                super::retract();
                rehearsal::kill_lost();
                let why = self.why();
                match self.salvage(salvage.as_deref(), true) {
                    Ok(()) => {
                        let errno = self.execute();
                        self.leave_to_keeper(why);
                        self.strand(why, format_args!("cannot exec it: {}", errno.desc()))
                    }
                    Err(error) => {
                        self.leave_to_keeper(why);
                        self.strand(why, format_args!("cannot save the guest: {error}"))
                    }
                }
            }
        }
    }

    /// Strands this process, unless another one has claimed the guest: then this one ends.
    fn strand(&self, first: &str, second: fmt::Arguments<'_>) -> ! {
        if let Some(page) = &self.page {
            page.claim_or_end(Claim::Released);
        }
        strand(&self.kept, first, second)
    }

    /// Continues the guest in the keeper, after the process it watched has ended or hangs for good.
    pub(super) fn continue_as_keeper(&self, ending: Ending, page: &CommitPage) -> ! {
        let pid = self.kept.pid;
        let why = match page.note() {
            "" => Why::Ending(ending),
            note => Why::Note(note),
        };
        // SAFETY: the process that could write or read it has ended.
        unsafe { self.program.why.set(format_args!("{why}")) };
        let kept = &self.kept;
        let salvage = match &self.role {
            Role::Live(salvage) => salvage.as_deref(),
            _ => None,
        };
        if let Err(error) = self.salvage(salvage, false) {
            strand(
                kept,
                self.why(),
                format_args!("cannot save the guest of process {pid}: {error}"),
            )
        }
        // A process that does not end may be waiting for the disk that the retraction would write
        // to.
        if ending != Ending::Deadline {
            super::retract();
        }
        // Descriptors that only this address space can use must not cross exec, whatever was about
        // to be published.
        sys::close_all_on_exec();
        for fd in &self.inherited {
            let _ = sys::set_close_on_exec(*fd, false);
        }
        let errno = self.execute();
        strand(kept, self.why(), format_args!("cannot exec the old binary: {}", errno.desc()))
    }

    /// Saves the guest as it is, if it is not saved yet. `running`: called in the process that runs
    /// it.
    fn salvage(&self, salvage: Option<&Salvage>, running: bool) -> Result<(), SalvageError> {
        if self.kept.saved.is_none() && self.traffic_fd >= 0 {
            // SAFETY: the thread that used the sockets is this one, or dead.
            unsafe { self.traffic.write(self.traffic_fd) }.map_err(SalvageError::of("write"))?;
        }
        let Some(salvage) = salvage.filter(|_| self.kept.saved.is_none()) else { return Ok(()) };
        if !salvage.is_whole() {
            // A vCPU is gone. An empty dump means a reset, which was due anyway.
            return sys::truncate(self.dump).map_err(SalvageError::of("ftruncate"));
        }
        if running && !salvage.halt(HALT) {
            // A vCPU waits for something this thread holds. The keeper can save the vCPUs once they
            // are dead.
            self.leave_to_keeper(self.why());
        }
        // SAFETY: the vCPUs are stopped or died with their process, signals are blocked, and this
        // is the address space of the VM.
        unsafe { salvage.save(self.dump) }
    }

    /// Ends this process if a keeper can continue the guest.
    pub(super) fn leave_to_keeper(&self, why: &str) {
        let undecided = self.page.as_ref().is_none_or(|page| page.is_undecided());
        if self.has_keeper && undecided && keeper::is_watching(self.kept.keeper) {
            if let Some(page) = &self.page {
                page.write_note(why);
            }
            sys::exit(FAILED);
        }
    }

    fn execute(&self) -> Errno {
        // SAFETY: all are NUL-terminated strings or null-terminated arrays of such, and live until
        // the call returns or this program is replaced. Ignoring the alarm discards a pending one,
        // for which no handler would be left.
        unsafe {
            for InheritedFd { fd, reserve } in &self.crossing {
                match reserve.load(Ordering::Relaxed) {
                    -1 => drop(sys::set_close_on_exec(*fd, false)),
                    reserve => {
                        let _ =
                            sys::call(libc::SYS_dup2, [reserve as usize, *fd as usize, 0, 0, 0, 0]);
                    }
                };
            }
            libc::signal(ALARM as i32, libc::SIG_IGN);
            libc::sigprocmask(libc::SIG_SETMASK, &self.program.mask, ptr::null_mut());
            let arguments = [
                self.binary as usize,
                c"".as_ptr() as usize,
                self.program.argv.pointers.as_ptr() as usize,
                self.environment.as_ptr() as usize,
                libc::AT_EMPTY_PATH as usize,
                0,
            ];
            match sys::call(libc::SYS_execveat, arguments) {
                Err(errno) => errno,
                Ok(_) => Errno::UnknownErrno,
            }
        }
    }
}

/// The exit status of a process that leaves the guest to its keeper.
const FAILED: i32 = 70;

enum Why<'a> {
    Ending(Ending),
    Note(&'a str),
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ending(ending) => ending.fmt(f),
            Self::Note(note) => f.write_str(note),
        }
    }
}

fn block_signals() {
    // SAFETY: structures of our own; the calls are async-signal-safe.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, ptr::null_mut());
    }
}

/// Returns the signal mask with the termination signals blocked until the old binary has its
/// handlers again.
fn held_mask(record: &Record) -> libc::sigset_t {
    let mut mask = record.mask();
    mask.extend(END_SIGNALS);
    *SigSet::as_ref(&mask)
}

//! The child process of a rehearsal: describes itself, then performs all steps of a takeover, under
//! the same limits and filters, on a VM and RAM of its own. RAM is mapped and never touched.

use std::ffi::CString;
use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::signals::EndSignals;
use crate::config::{Config, Incoming};
use crate::devices::serial::{SerialConfig, SerialHost};
use crate::keeper::commit::CommitPage;
use crate::keeper::{Ending, Keeper};
use crate::logging;
use crate::machine::Machine;
use crate::machine::order::Step;
use crate::memory::{MemoryConfig, RamBlock};
use crate::migration::cpr::description::Description;
use crate::migration::cpr::fall_back::Triggers;
use crate::migration::cpr::fd_names::KVM_FD;
use crate::migration::cpr::headroom;
use crate::migration::cpr::named_fds::{AdoptedFds, CheckedFds, NamedFd};
use crate::migration::cpr::rehearsal::{AnswerError, Answering, Needs, Word};

/// Bytes of stack that the main thread of a takeover may need.
const STACK: u64 = 1 << 20;
/// Longer than any of it can take: the VMM that asked enforces the actual deadline.
const DEADLINE: Duration = Duration::from_secs(60);

/// Answers the rehearsal; the exit status tells whether that succeeded.
pub(super) fn answer(asked: Result<Answering, AnswerError>, config: &Config) -> ExitCode {
    let mut answering = match asked {
        Ok(answering) => answering,
        Err(error) => {
            logging::say(format_args!("cpr-vmm: {error}"));
            logging::finish();
            return ExitCode::FAILURE;
        }
    };
    // Armed fail points are meant for the update.
    #[cfg(feature = "failpoints")]
    crate::failpoints::disarm();
    match answer_all(&mut answering, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::say(format_args!("cpr-vmm: cannot answer the rehearsal: {error}"));
            logging::finish();
            ExitCode::FAILURE
        }
    }
}

fn answer_all(answering: &mut Answering, config: &Config) -> io::Result<()> {
    let request = answering.request()?;
    answering.introduce(&Description::of(config))?;
    let Some(request) = request else { return Ok(()) };
    let mut steps = Steps { answering, broken: None };
    let outcome = rehearse(config, &request.fds, &mut steps);
    if let Some(error) = steps.broken {
        return Err(error);
    }
    answering.send(&match outcome {
        Ok(needs) => Word::Done(needs),
        Err(why) => Word::Failed(why),
    })
}

/// Reports each step before it is tried, so that a step that kills this process is known.
struct Steps<'a> {
    answering: &'a mut Answering,
    broken: Option<io::Error>,
}

impl Steps<'_> {
    fn next(&mut self, step: impl Into<String>) {
        if self.broken.is_none() {
            self.broken = self.answering.send(&Word::Step(step.into())).err();
        }
    }
}

fn rehearse(config: &Config, handed: &[NamedFd], steps: &mut Steps<'_>) -> Result<Needs, String> {
    steps.next("check the stack limit");
    stack()?;
    steps.next("adopt the descriptors that an update hands over");
    let checked = CheckedFds::check(handed).map_err(words)?;
    steps.next("signal the old VMM's processes");
    can_signal_parent()?;
    steps.next("open the state file");
    state_file(config)?;
    steps.next("prepare the fallback to the old binary");
    let mut triggers = Triggers::install().map_err(words)?;
    triggers.set_deadline(Some(DEADLINE)).map_err(words)?;
    can_go_back()?;
    steps.next("duplicate the descriptors for the fallback");
    let mut reserved = Vec::new();
    for named in handed {
        let NamedFd { name, fd, .. } = named;
        let full = |error| format!("descriptor {fd} ({name}): {error}; see RLIMIT_NOFILE");
        reserved.push(duplicate(named).map_err(full)?);
    }
    // SAFETY: they are open placeholders that nothing owns: this process has opened others.
    let mut fds = unsafe { AdoptedFds::own(checked) };
    let kvm = fds.take(KVM_FD, 0);
    steps.next("install signal handlers");
    let _signals = EndSignals::install(None).map_err(words)?;
    steps.next("map guest RAM");
    let ram = ram(config.memory.ram)?;
    steps.next("create the machine");
    let mut machine = Machine::new(config.machine(), ram, None, kvm).map_err(words)?;
    let host = SerialHost::open(&SerialConfig::Null, None, &mut |_| None).map_err(words)?;
    machine.rehearse(host, &mut |step| steps.next(name(step))).map_err(words)?;
    steps.next("start a keeper that shares the address space");
    let keeper = Keeper::start(nothing_to_continue, None).map_err(words)?;
    steps.next("find room for the saved state");
    headroom::address_space(config.cpus.into()).map_err(words)?;
    let needs = needs();
    drop(keeper);
    Ok(needs)
}

/// The keeper of a rehearsal, which exits at once.
fn nothing_to_continue(_: Ending, _: &CommitPage) -> ! {
    crate::sys::exit(0)
}

fn words(error: impl Display) -> String {
    error.to_string()
}

fn name(step: Step) -> String {
    match step {
        Step::Memslots => "register guest RAM with KVM",
        Step::CreateIrqchip => "create the interrupt controllers",
        Step::CreatePit => "create the PIT",
        Step::CreateVcpus => "create the vCPUs",
        Step::Devices => "create the devices",
        Step::Vcpus => "start the vCPUs' threads and set their state",
        Step::Irqchip => "set the interrupt controllers",
        Step::Pit => "set the PIT",
        Step::Clock => "set the clock",
        Step::Run => "run the vCPUs",
    }
    .to_owned()
}

/// Checks the stack limit in advance: running out of stack is fatal at any point.
fn stack() -> Result<(), String> {
    match getrlimit(Resource::RLIMIT_STACK) {
        Ok((limit, _)) if limit < STACK => Err(format!(
            "a takeover may need {} KiB, the limit is {} KiB: raise RLIMIT_STACK",
            STACK >> 10,
            limit >> 10
        )),
        _ => Ok(()),
    }
}

/// Checks that this process may signal its parent: the new VMM ends the processes that the old one
/// leaves behind.
fn can_signal_parent() -> Result<(), String> {
    let parent = nix::unistd::getppid();
    match nix::sys::signal::kill(parent, None) {
        Err(Errno::EPERM) => Err(format!(
            "kill: {}; a wrapper must not change the VMM's user",
            io::Error::from(Errno::EPERM)
        )),
        _ => Ok(()),
    }
}

/// Checks that the state file can be opened, if it exists already.
fn state_file(config: &Config) -> Result<(), String> {
    let Some(Incoming::File(path)) = config.incoming() else { return Ok(()) };
    match File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Checks that `execveat`, which executes the old binary, is available.
fn can_go_back() -> Result<(), String> {
    let nothing = std::ptr::null::<*const libc::c_char>();
    // SAFETY: no descriptor has this number, so nothing is executed; an empty path, and no arrays.
    unsafe {
        let path = c"".as_ptr();
        libc::syscall(libc::SYS_execveat, -1, path, nothing, nothing, libc::AT_EMPTY_PATH)
    };
    match Errno::last() {
        Errno::EBADF => Ok(()),
        errno => Err(format!("execveat: {}", io::Error::from(errno))),
    }
}

fn duplicate(named: &NamedFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor was just found to be open.
    let fd = unsafe { BorrowedFd::borrow_raw(named.fd) };
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: the call just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Maps RAM as large as the guest's, with no content.
fn ram(memory: MemoryConfig) -> Result<RamBlock, String> {
    let name = CString::default();
    let file = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC);
    let file =
        File::from(file.map_err(|errno| format!("memfd_create: {}", io::Error::from(errno)))?);
    // No takeover creates a file of this size, so this limit does not matter.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_FSIZE) {
        let _ = setrlimit(Resource::RLIMIT_FSIZE, hard, hard);
    }
    match file.set_len(memory.size) {
        Ok(()) => RamBlock::adopt(memory, file.into()).map_err(words),
        // The same address space without a file.
        Err(_) => RamBlock::create(MemoryConfig { share: false, ..memory }).map_err(words),
    }
}

/// Returns the resources in use now, as far as the kernel reports them.
fn needs() -> Needs {
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as u64);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let peak = peak.and_then(|line| line.split_whitespace().next()?.parse().ok());
    Needs { descriptors, address_space_kib: peak.unwrap_or(0) }
}

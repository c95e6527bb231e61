//! The rehearsal: before the guest stops, the command runs once in a child. The child reports its
//! identity, what it can load and the machine its arguments describe, and then performs every step
//! of a take-over that does not touch the guest.

mod answer;
mod child;
mod error;
mod process_tree;
mod said;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::unistd::{Pid, pipe2};

pub use answer::{AnswerError, Answering, Needs, Request, Word};
pub use child::{RemainingProcess, kill_lost};
pub use error::{RehearsalError, outcome};

use super::command::{ExecCommand, ExecError};
use super::description::Description;
use super::fd_names::KVM_FD;
use super::named_fds::NamedFd;
use super::variables::{REHEARSAL, REHEARSAL_MARK};
use answer::{MAX_ANSWER, Malformed};
use child::Child;
use process_tree::{Subreaper, children, new_mark};
use said::StderrExcerpt;

/// The socket's descriptor in the child, unless an update hands over a descriptor of that number.
const CHILD_SOCKET: RawFd = 3;

/// A rehearsal under way. Dropping it ends it and every process it has started.
#[derive(Debug)]
pub struct Rehearsal {
    command: String,
    child: Child,
    socket: UnixStream,
    answer: Vec<u8>,
    /// How many of its bytes have been decoded.
    understood: usize,
    answered_by: Option<Pid>,
    description: Option<Description>,
    step: String,
    stderr: io::PipeReader,
    said: StderrExcerpt,
    stderr_open: bool,
    socket_open: bool,
    began: Instant,
    timeout: Duration,
}

/// Once the description has arrived, the timeout is multiplied by this.
const TRYING: u32 = 5;

impl Rehearsal {
    /// Runs `command` in a session of its own, without any descriptor of the VM: in place of each
    /// one that an update would hand over, it finds `/dev/null`. KVM's is the exception, as it is
    /// bound to no VM.
    pub fn start(
        command: &ExecCommand,
        timeout: Duration,
        handed_over: Vec<NamedFd>,
    ) -> Result<Self, RehearsalError> {
        let setup = |call| {
            let command = command.name().to_owned();
            move |source: io::Error| RehearsalError::Setup { command, call, source }
        };
        let setup_errno = |call| {
            let setup = setup(call);
            move |errno: Errno| setup(errno.into())
        };
        fail_point!(Rehearsal);
        within_limit(&handed_over)?;
        let (socket, theirs) = UnixStream::pair().map_err(setup("socketpair"))?;
        // The kernel adds the sender to each message: the socket itself is inherited by every
        // descendant.
        setsockopt(&socket, sockopt::PassCred, &true).map_err(setup_errno("setsockopt"))?;
        socket.set_nonblocking(true).map_err(setup("fcntl"))?;
        let (stderr, their_stderr) = pipe2(OFlag::O_CLOEXEC).map_err(setup_errno("pipe2"))?;
        set_nonblocking(&stderr).map_err(setup_errno("fcntl"))?;
        let before = children();
        // Orphans of the rehearsal become our children, and cannot escape.
        let reaper = Subreaper::become_one().map_err(setup_errno("prctl"))?;
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(setup("open /dev/null"))?;
        let (number, descriptors) = descriptors(&null, &their_stderr, &theirs, &handed_over);
        // It stays in the socket's buffer, whether the command reads it or not.
        let request = answer::frame(&Request { fds: handed_over });
        (&socket).write_all(&request).map_err(setup("write to the socket"))?;
        let mark = new_mark();
        let variables = [(REHEARSAL, number.to_string()), (REHEARSAL_MARK, mark.clone())];
        let spawned = command.spawn(&variables, descriptors)?;
        Ok(Self {
            command: command.name().to_owned(),
            child: Child::new(spawned, mark, before, reaper),
            socket,
            answer: Vec::new(),
            understood: 0,
            answered_by: None,
            description: None,
            step: String::new(),
            stderr: stderr.into(),
            said: StderrExcerpt::default(),
            stderr_open: true,
            socket_open: true,
            began: Instant::now(),
            timeout,
        })
    }

    /// Returns the descriptors to wait for.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds: Vec<_> = self.child.fds().collect();
        fds.extend(self.socket_open.then(|| self.socket.as_fd()));
        fds.extend(self.stderr_open.then(|| self.stderr.as_fd()));
        fds
    }

    /// Returns how long the rehearsal has run.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Returns how long to wait at most.
    pub fn time_left(&self) -> Duration {
        self.patience().saturating_sub(self.began.elapsed())
    }

    /// Returns the timeout. A command that has replied gets more time: creating a VM can take
    /// seconds on a busy host.
    fn patience(&self) -> Duration {
        match self.description {
            None => self.timeout,
            Some(_) => self.timeout * TRYING,
        }
    }

    /// Returns the description, once it has arrived.
    pub fn description(&self) -> Option<&Description> {
        self.description.as_ref()
    }

    /// Processes what has arrived; `Some` when the rehearsal is over.
    pub fn progress(&mut self) -> Option<Result<(), RehearsalError>> {
        match self.child.executed() {
            Some(Ok(())) => offer_to_oom_killer(self.child.pid()),
            Some(Err(errno)) => return Some(Err(ExecError::new(&self.command, errno).into())),
            None => {}
        }
        // Before the pipes are drained, so that the output of an ended child is complete.
        let ended = self.child.status();
        self.drain_stderr();
        self.drain_socket();
        match self.understand() {
            Ok(true) => return Some(Ok(())),
            Ok(false) => {}
            Err(error) => return Some(Err(error)),
        }
        if let Some(how) = ended {
            return Some(Err(self.ended(how)));
        }
        if self.time_left().is_zero() {
            let (command, stderr, waited) = (self.command.clone(), self.stderr(), self.patience());
            return Some(Err(match self.description {
                None => RehearsalError::Deadline { command, waited, stderr },
                Some(_) => self.cannot(format!("it took more than {} ms", waited.as_millis())),
            }));
        }
        None
    }

    /// Ends the rehearsal and every process it has started; returns those that remain.
    pub fn end(mut self) -> Vec<RemainingProcess> {
        self.child.end()
    }

    fn ended(&self, how: String) -> RehearsalError {
        let (command, stderr) = (self.command.clone(), self.stderr());
        match (&self.description, self.child.orphan()) {
            (Some(_), _) => self.cannot(how),
            (None, Some(orphan)) => RehearsalError::LeftBehind { command, how, orphan, stderr },
            (None, None) => RehearsalError::Ended { command, how, stderr },
        }
    }

    fn cannot(&self, why: String) -> RehearsalError {
        let (command, step) = (self.command.clone(), self.step.clone());
        RehearsalError::CannotTakeOver { command, step, why, stderr: self.stderr() }
    }

    fn stderr(&self) -> String {
        self.said.appended()
    }

    fn drain_stderr(&mut self) {
        let mut buffer = [0; 4096];
        // Endless output must not keep us here: the rest is read after the next poll.
        for _ in 0..16 {
            match self.stderr.read(&mut buffer) {
                Ok(0) => self.stderr_open = false,
                Ok(length) => {
                    self.said.add(&buffer[..length]);
                    continue;
                }
                Err(_) => {}
            }
            return;
        }
    }

    fn drain_socket(&mut self) {
        while self.answer.len() <= MAX_ANSWER {
            match receive(&self.socket, &mut self.answer) {
                Ok((0, _)) => self.socket_open = false,
                Ok((_, writer)) => {
                    self.answered_by = self.answered_by.or(writer);
                    continue;
                }
                Err(Errno::EAGAIN) => {}
                Err(_) => self.socket_open = false,
            }
            return;
        }
    }

    /// Decodes the messages that have arrived; returns true after the last one.
    fn understand(&mut self) -> Result<bool, RehearsalError> {
        let garbage = |why: Malformed| RehearsalError::Garbage {
            command: self.command.clone(),
            why: why.to_string(),
            stderr: self.said.appended(),
        };
        if self.answer.len() > MAX_ANSWER {
            return Err(garbage(Malformed::TooLong));
        }
        while let Some(body) = answer::next(&self.answer[self.understood..]).map_err(garbage)? {
            self.understood += answer::HEADER + body.len();
            if self.description.is_none() {
                let description: Description = answer::decode(body).map_err(garbage)?;
                let started = self.child.pid();
                if let Some(answered) = self.answered_by.filter(|answered| *answered != started) {
                    let command = self.command.clone();
                    return Err(RehearsalError::Forked { command, answered, started });
                }
                let older = !description.tries_everything;
                self.description = Some(description);
                if older {
                    return Ok(true);
                }
                continue;
            }
            match answer::decode(body).map_err(garbage)? {
                Word::Step(step) => self.step = step,
                Word::Failed(why) => return Err(self.cannot(why)),
                Word::Done(Needs { descriptors, address_space_kib }) => {
                    tracing::info!(descriptors, address_space_kib, "cpr_rehearsed");
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

/// Checks that the child can have a descriptor under each number.
fn within_limit(handed_over: &[NamedFd]) -> Result<(), RehearsalError> {
    let Some(fd) = handed_over.iter().map(|named| named.fd).max() else { return Ok(()) };
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((limit, _)) if limit <= fd as u64 => Err(RehearsalError::Limit { fd, limit }),
        _ => Ok(()),
    }
}

/// Returns the socket's number in the child, and the pairs of source and target descriptor.
fn descriptors(
    null: &File,
    stderr: &impl AsRawFd,
    socket: &UnixStream,
    handed_over: &[NamedFd],
) -> (RawFd, Vec<(RawFd, RawFd)>) {
    let taken: BTreeSet<_> = handed_over.iter().map(|named| named.fd).collect();
    let number = (CHILD_SOCKET..).find(|number| !taken.contains(number)).unwrap_or(CHILD_SOCKET);
    let null = null.as_raw_fd();
    let mut all = vec![(null, 0), (null, 1), (stderr.as_raw_fd(), 2)];
    all.extend(handed_over.iter().map(|named| match named.name == KVM_FD {
        true => (named.fd, named.fd),
        false => (null, named.fd),
    }));
    // Last: nothing else is moved after it, so it may replace one of the others.
    all.push((socket.as_raw_fd(), number));
    (number, all)
}

/// Appends what can be read now to `to`. Returns how many bytes, and who wrote them.
fn receive(socket: &UnixStream, to: &mut Vec<u8>) -> Result<(usize, Option<Pid>), Errno> {
    let mut buffer = [0; 4096];
    let mut control = nix::cmsg_space!(libc::ucred);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let length = message.bytes;
    let writer = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmCredentials(writer) => Some(Pid::from_raw(writer.pid())),
        _ => None,
    });
    to.extend_from_slice(&buffer[..length]);
    Ok((length, writer))
}

/// Makes the OOM killer prefer this child to the VMM with all of the guest's RAM. This is no
/// guarantee: in a cgroup that the VMM fills to the last MiB or so, the two score the same.
///
/// Call it only after the child has executed the command: until then it shares its memory with the
/// VMM, and the kernel would apply the value to the VMM too.
fn offer_to_oom_killer(pid: Pid) {
    const FIRST_TO_GO: &str = "1000";
    // The child may have ended already, and a system without this file has nothing to set.
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), FIRST_TO_GO);
}

fn set_nonblocking(fd: &impl AsFd) -> Result<(), Errno> {
    fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

#[cfg(test)]
mod tests;

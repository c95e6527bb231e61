//! `pmemsave`: writes guest memory to a file on a separate thread, while other clients are served.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use cpr_qmp::command::PmemsaveArgs;
use cpr_qmp::message::QmpError;
use cpr_qmp::run_state::RunState;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use super::{Vmm, answers};
use crate::memory::GuestMemory;
use crate::migration::cpr::plan::Refused;
use crate::private_file::{PrivateFile, PrivateFileError};
use crate::qmp::ConnectionId;
use crate::worker_thread::{self, SignalEnd};

/// Maximum number of bytes per write.
const SLICE: u64 = 4 << 20;

/// Reasons why memory could not be saved.
#[derive(Debug, thiserror::Error)]
enum DumpError {
    #[error("{0:#x} + {1:#x} is not all RAM")]
    NotRam(u64, u64),
    #[error("an update is in progress: try again when it is over")]
    Update,
    #[error("Guest is waiting for an incoming migration")]
    Incoming,
    #[error(transparent)]
    Moved(#[from] Refused),
    #[error(transparent)]
    File(#[from] PrivateFileError),
    #[error(transparent)]
    Write(io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("the thread panicked")]
    Panic,
}

type Thread = JoinHandle<Result<(), DumpError>>;

/// A memory dump in progress.
pub(super) struct Dump {
    client: ConnectionId,
    filename: String,
    /// Becomes readable when the thread ends.
    ended: Arc<EventFd>,
    thread: Thread,
}

impl Dump {
    pub(super) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Vmm {
    /// Starts `pmemsave`. It is answered at once if it is refused, otherwise when it is done.
    pub(super) fn pmemsave(&mut self, client: ConnectionId, args: &PmemsaveArgs) {
        match self.start_dump(args) {
            Ok((ended, thread)) => {
                let filename = args.filename.clone();
                self.dumps.push(Dump { client, filename, ended, thread });
            }
            Err(error) => self.qmp.respond(client, Err(failed(&args.filename, &error))),
        }
    }

    fn start_dump(&self, args: &PmemsaveArgs) -> Result<(Arc<EventFd>, Thread), DumpError> {
        match self.machine.run_state() {
            RunState::Inmigrate => return Err(DumpError::Incoming),
            RunState::Postmigrate => return Err(Refused::gone(&self.machine).into()),
            _ => {}
        }
        // A rehearsal leads to an exec, which would end the dump's thread.
        if self.rehearsing.is_some() || self.transferring.is_some() || self.sending.is_some() {
            return Err(DumpError::Update);
        }
        let PmemsaveArgs { val, size, ref filename } = *args;
        let memory = self.machine.ram().memory().clone();
        if size > 0 && !memory.check_range(GuestAddress(val), size as usize) {
            return Err(DumpError::NotRam(val, size));
        }
        let file = PrivateFile::open(filename.into(), self.config.follow_symlinks)?;
        file.clear_target()?;
        let thread = |source| DumpError::Thread(source);
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ended = Arc::new(EventFd::from_flags(flags).map_err(|errno| thread(errno.into()))?);
        let end = SignalEnd(ended.clone());
        let save = move || {
            let _end = end;
            save(&memory, val, size, file)
        };
        Ok((ended, worker_thread::spawn("pmemsave", save).map_err(thread)?))
    }

    /// Answers the clients whose dumps have ended.
    pub(super) fn poll_dumps(&mut self) {
        let over = |dump: &mut Dump| dump.ended.read().is_ok();
        let ended: Vec<_> = self.dumps.extract_if(.., over).collect();
        for Dump { client, filename, thread, .. } in ended {
            let result = match thread.join().unwrap_or(Err(DumpError::Panic)) {
                Ok(()) => answers::done(),
                Err(error) => Err(failed(&filename, &error)),
            };
            self.qmp.respond(client, result);
        }
    }
}

fn failed(filename: &str, error: &DumpError) -> QmpError {
    QmpError::generic(format!("cannot save memory to {filename}: {error}"))
}

fn save(memory: &GuestMemory, from: u64, size: u64, mut to: PrivateFile) -> Result<(), DumpError> {
    let mut done = 0;
    while done < size {
        let length = SLICE.min(size - done);
        let at = GuestAddress(from + done);
        memory.write_all_volatile_to(at, &mut to.file(), length as usize).map_err(|error| {
            match error {
                GuestMemoryError::IOError(error) => DumpError::Write(error),
                other => DumpError::Write(io::Error::other(other)),
            }
        })?;
        done += length;
    }
    to.put_in_place()?;
    to.keep();
    Ok(())
}

//! The CPR state: what the new process must know before it creates anything. It is in a sealed
//! memfd, after the fallback record.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};

use cpr_qmp::migration::MigrationParameters;
use cpr_qmp::run_state::RunState;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::MFdFlags;
use serde::{Deserialize, Serialize};

use super::fall_back::{Record, RecordError};
use super::version::CPR_VERSION;
use crate::descriptors;
use crate::memfd::{self, all_seals};
use crate::memory::RamBlockInfo;
use crate::migration::status::{Blackout, MigrationSnapshot};
use crate::qmp::ServerState;
use crate::state::{Envelope, EnvelopeError, Fingerprint};
use crate::unix_listener::ListenerState;
use crate::vcpu::GuestEvent;

/// The memfd's name.
const MEMFD_NAME: &std::ffi::CStr = c"cpr-state";
const ENVELOPE: Envelope = Envelope { magic: *b"CPREXEC\n", version: CPR_VERSION };
/// Maximum nesting depth of CBOR.
const MAX_DEPTH: usize = 32;
/// Maximum size that is read, in bytes: QMP buffers are the largest part.
const MAX_BYTES: u64 = 64 << 20;
// The rest is less than 8 MiB; arguments and environment are its largest part.
const _: () = assert!(crate::qmp::MAX_STATE as u64 + (8 << 20) <= MAX_BYTES);

/// What the old process passes to the new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CprState {
    /// The run state before the update.
    pub run_state: RunState,
    /// The RAM blocks whose descriptors crossed exec.
    pub ram_blocks: Vec<RamBlockInfo>,
    /// The fingerprint of the saved state that belongs to this.
    pub channel: Fingerprint,
    /// The QMP server.
    pub qmp: ServerState,
    /// The serial port's listening socket.
    pub serial_listener: Option<ListenerState>,
    /// Guest requests that have not been handled yet.
    pub pending_events: Vec<GuestEvent>,
    /// The process ID of the keeper, which holds the old address space.
    pub helper: Option<i32>,
    /// The migration.
    pub migration: MigrationRecord,
    /// The PID file, absolute. Older binaries neither write nor read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<serde_bytes::ByteBuf>,
    /// The migration parameters, for an old binary that is executed again after a failure.
    pub parameters: MigrationParameters,
    /// Identifies the set of MSRs from which the saved ones were chosen
    /// (`StateCapabilities::msr_choice`). If the set is unchanged, the new process need not choose
    /// again, which would take a VM of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub msr_choice: Option<u64>,
    /// Set if the guest's own process did not save it for an update, for the process that continues
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Live>,
}

/// What a process was doing when it failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Whether an update was under way.
    pub updating: bool,
    /// The latest migration.
    pub migration: MigrationSnapshot,
}

/// The part of the migration that continues in the new process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationRecord {
    /// The capability `events`.
    pub events: bool,
    /// `CLOCK_MONOTONIC` at `migrate`, in nanoseconds.
    pub began_ns: u64,
    /// `CLOCK_MONOTONIC` when the vCPUs had stopped, in nanoseconds.
    pub paused_ns: u64,
    /// How long the rehearsal took, in nanoseconds. Older binaries neither write nor read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal_ns: Option<u64>,
    /// The last update that completed. Older binaries neither write nor read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Blackout>,
}

/// Errors from writing the CPR state.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A system call failed.
    #[error("cannot write the CPR state to a memfd: {call}: {source}")]
    System {
        /// The system call.
        call: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The state exceeds the size that the new process reads.
    #[error("the CPR state has {bytes} bytes, more than the {limit} that the new process reads")]
    TooLarge {
        /// Size in bytes.
        bytes: u64,
        /// Maximum size in bytes.
        limit: u64,
    },
}

/// An empty memfd, created while the guest runs.
#[derive(Debug)]
pub struct StateFd(OwnedFd);

impl StateFd {
    /// Creates the memfd, close-on-exec.
    pub fn create() -> Result<Self, WriteError> {
        memfd::create(MEMFD_NAME, MFdFlags::empty())
            .map(Self)
            .map_err(|errno| WriteError::System { call: "memfd_create", source: errno.into() })
    }

    /// Writes the fallback record and the state, and seals the memfd.
    pub fn write(self, record: &Record, state: &CprState) -> Result<SealedFd, WriteError> {
        let mut body = Vec::new();
        ciborium::into_writer(state, &mut body)
            .expect("writing to memory cannot fail and the state has no type CBOR lacks");
        let mut content = record.seal();
        content.extend(ENVELOPE.seal(&body).0);
        if content.len() as u64 > MAX_BYTES {
            return Err(WriteError::TooLarge { bytes: content.len() as u64, limit: MAX_BYTES });
        }
        seal(self.0, &content)
    }
}

impl AsRawFd for StateFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// An empty memfd for a copy of the saved state: a fallback does not depend on the channel's file.
#[derive(Debug)]
pub struct SavedStateFd(OwnedFd);

impl SavedStateFd {
    /// Creates the memfd, close-on-exec.
    pub fn create() -> Result<Self, WriteError> {
        memfd::create(c"cpr-saved-state", MFdFlags::empty())
            .map(Self)
            .map_err(|errno| WriteError::System { call: "memfd_create", source: errno.into() })
    }

    /// Writes the saved state, and seals the memfd.
    pub fn write(self, saved: &[u8]) -> Result<SealedFd, WriteError> {
        seal(self.0, saved)
    }
}

impl AsRawFd for SavedStateFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn seal(memfd: OwnedFd, content: &[u8]) -> Result<SealedFd, WriteError> {
    let error = |call| move |source| WriteError::System { call, source };
    let mut file = File::from(memfd);
    #[cfg(feature = "failpoints")]
    let part =
        &content[..crate::failpoints::written(crate::failpoints::Point::State, content.len())];
    #[cfg(not(feature = "failpoints"))]
    let part = content;
    file.write_all(part).map_err(error("write"))?;
    let written = file.metadata().map_err(error("fstat"))?.len();
    if written != content.len() as u64 {
        let short = format!("it has {written} bytes after writing {}", content.len());
        return Err(error("write")(io::Error::other(short)));
    }
    fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals()))
        .map_err(|errno| error("seal")(errno.into()))?;
    Ok(SealedFd(file.into()))
}

/// A memfd that can no longer be changed.
#[derive(Debug)]
pub struct SealedFd(OwnedFd);

impl AsFd for SealedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Errors from reading the CPR state that the environment names.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The value is not a descriptor number.
    #[error("\"{0}\" is not a descriptor number")]
    Number(String),
    /// The descriptor is one of the first three, which have no owner.
    #[error("descriptor {0} is one of stdin, stdout and stderr")]
    Standard(RawFd),
    /// The descriptor is not open.
    #[error("descriptor {fd} is not open: {source}")]
    NotOpen {
        /// The descriptor.
        fd: RawFd,
        /// The cause.
        source: io::Error,
    },
    /// The descriptor is not a sealed memfd.
    #[error("descriptor {0} is not a sealed memfd")]
    NotSealed(RawFd),
    /// The content cannot be read.
    #[error("descriptor {fd} cannot be read: {source}")]
    Read {
        /// The descriptor.
        fd: RawFd,
        /// The cause.
        source: io::Error,
    },
    /// The content is too large.
    #[error("descriptor {fd} has {bytes} bytes, more than any CPR state")]
    TooLarge {
        /// The descriptor.
        fd: RawFd,
        /// Size in bytes.
        bytes: u64,
    },
    /// The content is not a CPR state.
    #[error("descriptor {fd} holds no CPR state: {source}")]
    Envelope {
        /// The descriptor.
        fd: RawFd,
        /// The cause.
        source: EnvelopeError,
    },
    /// The content does not start with a valid fallback record.
    #[error("descriptor {fd} holds no CPR state: {source}")]
    Record {
        /// The descriptor.
        fd: RawFd,
        /// The cause.
        source: RecordError,
    },
    /// The content belongs to another process.
    #[error("descriptor {fd} holds the CPR state of process {pid}")]
    OtherProcess {
        /// The descriptor.
        fd: RawFd,
        /// The process that it belongs to.
        pid: i32,
    },
    /// The content cannot be decoded.
    #[error("the CPR state in descriptor {fd} cannot be decoded: {why}")]
    Decode {
        /// The descriptor.
        fd: RawFd,
        /// The cause.
        why: String,
    },
}

/// A sealed memfd that holds a fallback record, with data after it.
#[derive(Debug)]
pub struct Sealed {
    /// The fallback record.
    pub record: Record,
    fd: RawFd,
    state: Vec<u8>,
}

/// Reads the memfd that `value` (of [`STATE`](super::variables::STATE)) names. Opens and closes nothing.
pub fn open(value: &str) -> Result<Sealed, ReadError> {
    let not_number = || ReadError::Number(value.to_owned());
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(not_number());
    }
    let fd: RawFd = value.parse().map_err(|_| not_number())?;
    if fd <= 2 {
        return Err(ReadError::Standard(fd));
    }
    open_number(fd)
}

/// Searches all open descriptors for the memfd: the variable was lost or forged, and the guest must
/// not be lost with it.
pub fn find() -> Option<Sealed> {
    descriptors::open().into_iter().filter(|fd| *fd > 2).find_map(|fd| open_number(fd).ok())
}

fn open_number(fd: RawFd) -> Result<Sealed, ReadError> {
    // SAFETY: a closed number gives EBADF; `main` does this first, so none is closed meanwhile.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let seals = match fcntl(borrowed, FcntlArg::F_GET_SEALS) {
        Ok(seals) => SealFlag::from_bits_truncate(seals),
        Err(Errno::EINVAL) => return Err(ReadError::NotSealed(fd)),
        Err(errno) => return Err(ReadError::NotOpen { fd, source: errno.into() }),
    };
    if !seals.contains(all_seals()) {
        return Err(ReadError::NotSealed(fd));
    }
    let bytes = content(borrowed)?;
    let (record, state) =
        Record::open(&bytes).map_err(|source| ReadError::Record { fd, source })?;
    // The keeper of that process may read it too.
    if ![record.pid, record.helper].contains(&(std::process::id() as i32)) {
        return Err(ReadError::OtherProcess { fd, pid: record.pid });
    }
    if record.state != fd {
        let why = format!("it was written to descriptor {}", record.state);
        return Err(ReadError::Record { fd, source: RecordError::Decode(why) });
    }
    let state = state.to_vec();
    Ok(Sealed { record, fd, state })
}

impl Sealed {
    /// Decodes the CPR state.
    pub fn state(&self) -> Result<CprState, ReadError> {
        let fd = self.fd;
        let (body, _) =
            ENVELOPE.open(&self.state).map_err(|source| ReadError::Envelope { fd, source })?;
        let body = seam!(cpr_state(Cow::from(body)));
        let mut body = &*body;
        let decode = |why: String| ReadError::Decode { fd, why };
        let state = ciborium::de::from_reader_with_recursion_limit(&mut body, MAX_DEPTH)
            .map_err(|error| decode(error.to_string()))?;
        if !body.is_empty() {
            return Err(decode(format!("{} bytes follow it", body.len())));
        }
        Ok(state)
    }
}

fn content(memfd: BorrowedFd<'_>) -> Result<Vec<u8>, ReadError> {
    let fd = memfd.as_raw_fd();
    let read = |source| ReadError::Read { fd, source };
    let file = File::from(memfd.try_clone_to_owned().map_err(read)?);
    let bytes = file.metadata().map_err(read)?.size();
    if bytes > MAX_BYTES {
        return Err(ReadError::TooLarge { fd, bytes });
    }
    let mut content = vec![0; bytes as usize];
    file.read_exact_at(&mut content, 0).map_err(read)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> CprState {
        CprState {
            run_state: RunState::Running,
            ram_blocks: vec![RamBlockInfo { name: "pc.ram".to_owned(), size: 1 << 26 }],
            channel: SAMPLE.seal(b"state").1,
            qmp: ServerState::default(),
            serial_listener: None,
            pending_events: Vec::new(),
            helper: Some(7),
            migration: MigrationRecord { rehearsal_ns: Some(1), ..Default::default() },
            pid_file: None,
            parameters: MigrationParameters::default(),
            msr_choice: None,
            live: None,
        }
    }

    fn seal_for(memfd: StateFd, record: &Record) -> SealedFd {
        let record = Record { state: memfd.as_raw_fd(), ..record.clone() };
        memfd.write(&record, &state()).unwrap()
    }

    fn record() -> Record {
        Record::prepare(std::time::Duration::ZERO)
    }

    const SAMPLE: Envelope = Envelope { magic: *b"SAMPLE  ", version: 1 };

    fn error_of(fd: &impl AsRawFd) -> String {
        let number = fd.as_raw_fd().to_string();
        let text = open(&number).unwrap_err().to_string();
        text.replace(&format!("descriptor {number} "), "descriptor N ")
    }

    #[test]
    fn sealed_state_reads_back() {
        let sealed = seal_for(StateFd::create().unwrap(), &record());
        let read = open(&sealed.0.as_raw_fd().to_string()).unwrap();
        let record = Record { state: sealed.0.as_raw_fd(), ..record() };
        assert_eq!((read.state().unwrap(), read.record), (state(), record));
    }

    #[test]
    fn sealed_state_is_immutable() {
        let sealed = StateFd::create().unwrap().write(&record(), &state()).unwrap();
        let file = File::from(sealed.0);
        assert!(file.write_at(b"X", 0).is_err());
        assert!(file.set_len(1).is_err());
    }

    #[test]
    fn rejects_state_too_large_to_read() {
        let listener = ListenerState {
            fd: String::new(),
            path: vec![0; MAX_BYTES as usize],
            device: 0,
            inode: 0,
        };
        let large = CprState { serial_listener: Some(listener), ..state() };
        let error = StateFd::create().unwrap().write(&record(), &large).unwrap_err();
        assert!(matches!(error, WriteError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn forged_values_are_refused_by_name() {
        let unsealed = StateFd::create().unwrap().0;
        let null = File::open("/dev/null").unwrap();
        let foreign = StateFd::create().unwrap().0;
        File::from(foreign.try_clone().unwrap()).write_all(&SAMPLE.seal(b"x").0).unwrap();
        fcntl(&foreign, FcntlArg::F_ADD_SEALS(all_seals())).unwrap();
        let mut texts: Vec<_> = ["", "-1", "x", "3 ", "99999999999", "987654", "2"]
            .map(|v| open(v).unwrap_err().to_string())
            .into();
        texts.push(error_of(&unsealed));
        texts.push(error_of(&null));
        texts.push(error_of(&foreign));
        let other = Record { pid: 1, ..record() };
        texts.push(error_of(&seal_for(StateFd::create().unwrap(), &other).as_fd()));
        let future = StateFd::create().unwrap().0;
        let mut content = Record { state: future.as_raw_fd(), ..record() }.seal();
        content.extend(SAMPLE.seal(b"x").0);
        let future = seal(future, &content).unwrap();
        let number = future.0.as_raw_fd().to_string();
        texts.push(open(&number).unwrap().state().unwrap_err().to_string().replace(&number, "N"));
        insta::assert_debug_snapshot!(texts);
    }
}

//! The guest's RAM: its location, identity and digest.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use xxhash_rust::xxh3::Xxh3;

use super::fds::{Descriptor, FdTable};
use super::frames::{self, Frames};
use super::mailbox::{self, MailboxPage};
use super::maps::{self, Mapping};
use super::proc_error::ProcError;

/// Number of pages whose frames are sampled.
const FRAME_SAMPLE: u64 = 64;

/// Why the guest's RAM could not be found or read.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// `/proc` could not be read.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// No mapping looks like the guest's RAM.
    #[error("no {kind} mapping of {bytes} bytes in /proc/{pid}/maps")]
    NotFound {
        /// The process.
        pid: i32,
        /// The size looked for.
        bytes: u64,
        /// Shared or private.
        kind: &'static str,
    },
    /// The RAM could not be read.
    #[error("cannot read guest RAM through {path}: {source}")]
    Read {
        /// What was opened.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// The guest's RAM in one process at one moment.
#[derive(Clone, Debug)]
pub struct Ram {
    pid: i32,
    /// Size in bytes.
    pub bytes: u64,
    /// The descriptor of the file behind it; `None` if RAM is private.
    pub file: Option<Descriptor>,
    /// Where it is mapped.
    pub mappings: Vec<Mapping>,
    /// Page frames of a sample.
    pub frames: Frames,
}

impl Ram {
    /// Finds `bytes` of RAM in process `pid`, whose descriptors are `fds`. Shared RAM is in a memfd,
    /// or in the file `named`.
    pub fn find(
        pid: i32,
        bytes: u64,
        shared: bool,
        named: &str,
        fds: &FdTable,
    ) -> Result<Self, RamError> {
        let maps = maps::read(pid)?;
        let found =
            if shared { find_shared(bytes, named, fds, &maps) } else { find_private(bytes, &maps) };
        let (file, mappings) = found.ok_or(RamError::NotFound {
            pid,
            bytes,
            kind: if shared { "shared" } else { "private" },
        })?;
        let path = |file: &Descriptor| PathBuf::from(format!("/proc/{pid}/fd/{}", file.number));
        let of_file = file.as_ref().map(path);
        let of_file = of_file.and_then(|path| frames::sample_file(&path, bytes, FRAME_SAMPLE));
        let frames = of_file.unwrap_or_else(|| frames::sample(pid, &mappings, FRAME_SAMPLE));
        Ok(Self { pid, bytes, file, mappings, frames })
    }

    /// Computes a digest of all RAM except the mailbox's page, to which the harness itself writes.
    ///
    /// Meaningful only while the guest is stopped. `None` if RAM is private.
    pub fn digest(&self) -> Result<Option<u64>, RamError> {
        let Some(file) = &self.file else { return Ok(None) };
        let path = PathBuf::from(format!("/proc/{}/fd/{}", self.pid, file.number));
        let digest = File::open(&path).and_then(|file| digest_of(&file, self.bytes));
        digest.map(Some).map_err(|source| RamError::Read { path, source })
    }

    /// Opens the mailbox in this RAM.
    pub fn mailbox(&self) -> Result<MailboxPage, RamError> {
        match &self.file {
            Some(file) => {
                let path = PathBuf::from(format!("/proc/{}/fd/{}", self.pid, file.number));
                MailboxPage::shared(&path).map_err(|source| RamError::Read { path, source })
            }
            None => {
                let path = PathBuf::from(format!("/proc/{}/mem", self.pid));
                let base = self.mappings.first().map_or(0, |m| m.addresses.start);
                MailboxPage::foreign(&path, base).map_err(|source| RamError::Read { path, source })
            }
        }
    }
}

/// Computes a digest of the first `bytes` of `file`, which is the guest's RAM, except the mailbox's page.
pub fn digest_of(file: &File, bytes: u64) -> std::io::Result<u64> {
    let mut buffer = vec![0; 1 << 20];
    let mut digest = Xxh3::new();
    for start in (0..bytes).step_by(buffer.len()) {
        let part = &mut buffer[..(bytes - start).min(1 << 20) as usize];
        file.read_exact_at(part, start)?;
        blank_mailbox(part, start);
        digest.update(part);
    }
    Ok(digest.digest())
}

fn blank_mailbox(part: &mut [u8], start: u64) {
    let Some(at) = mailbox::MAILBOX_GPA.checked_sub(start) else { return };
    if let Some(page) = part.get_mut(at as usize..at as usize + mailbox::PAGE) {
        page.fill(0);
    }
}

fn find_shared(
    bytes: u64,
    named: &str,
    fds: &FdTable,
    maps: &[Mapping],
) -> Option<(Option<Descriptor>, Vec<Mapping>)> {
    let of_ram = |fd: &&Descriptor| fd.target.contains("(deleted)") || fd.target == named;
    fds.iter().filter(|fd| fd.size == bytes).filter(of_ram).find_map(|fd| {
        let of_file = maps.iter().filter(|m| m.shared && m.writable && m.inode == fd.inode.1);
        let mut mappings: Vec<Mapping> = of_file.cloned().collect();
        mappings.sort_by_key(|m| m.offset);
        let mapped: u64 = mappings.iter().map(Mapping::len).sum();
        (mapped >= bytes).then(|| (Some(fd.clone()), mappings))
    })
}

fn find_private(bytes: u64, maps: &[Mapping]) -> Option<(Option<Descriptor>, Vec<Mapping>)> {
    // The kernel merges adjacent mappings, so the mapping may be longer than RAM: take the
    // shortest.
    let fits = maps.iter().filter(|m| !m.shared && m.writable && m.len() >= bytes);
    let mapping = fits.min_by_key(|m| m.len())?;
    Some((None, vec![mapping.clone()]))
}

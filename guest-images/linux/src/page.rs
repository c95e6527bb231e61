//! The mailbox in a Linux guest: a page that `memmap=` on the command line keeps from the kernel.
//!
//! `/dev/mem` maps it, even with `CONFIG_STRICT_DEVMEM`, because it is not RAM for the kernel.

use std::fs::File;
use std::num::NonZeroUsize;
use std::time::Duration;
use std::{io, thread};

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use thiserror::Error;

use crate::finding::Finding;
use crate::mailbox::{MAILBOX_GPA, Mailbox};
use crate::reporting;

/// The file of physical memory.
const MEMORY: &str = "/dev/mem";

/// Errors from mapping the mailbox.
#[derive(Debug, Error)]
pub enum PageError {
    /// The file cannot be opened.
    #[error("cannot open {MEMORY}: {0}")]
    Open(io::Error),
    /// The page cannot be mapped.
    #[error(
        "cannot map {MEMORY} at {MAILBOX_GPA:#x}: {0}; the kernel needs memmap=4K${MAILBOX_GPA:#x}"
    )]
    Map(nix::Error),
}

/// Maps the mailbox.
pub fn map() -> Result<&'static Mailbox, PageError> {
    let memory = File::options().read(true).write(true).open(MEMORY).map_err(PageError::Open)?;
    let length = const { NonZeroUsize::new(size_of::<Mailbox>()).unwrap() };
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses.
    let page =
        unsafe { mmap(None, length, both, MapFlags::MAP_SHARED, &memory, MAILBOX_GPA as i64) };
    // SAFETY: the mapping has the size of a `Mailbox`, stays forever, and any bits are valid atomics.
    Ok(unsafe { page.map_err(PageError::Map)?.cast::<Mailbox>().as_ref() })
}

/// Records `finding`, which the vCPU `cpu` has found, and stops this thread.
pub fn report(page: &Mailbox, cpu: usize, finding: &Finding) -> ! {
    eprintln!("linux-agent: CPU {cpu}: {}", finding.text);
    reporting::record(page, cpu as u32, finding.report, format_args!("{}", finding.text));
    stop()
}

/// Stops this thread for good.
pub fn stop() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

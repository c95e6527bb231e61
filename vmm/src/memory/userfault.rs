//! Memory whose content is read when it is first used (userfaultfd.2, ioctl_userfaultfd.2).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};

use nix::errno::Errno;

const UFFD_API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
/// Bytes of a message, and where the address of a page fault is in it.
const MESSAGE: usize = 32;
const ADDRESS: usize = 16;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct ZeroPage {
    range: Range,
    mode: u64,
    zeropage: i64,
}

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, Register);
nix::ioctl_read!(uffdio_unregister, 0xaa, 0x01, Range);
nix::ioctl_readwrite!(uffdio_copy, 0xaa, 0x03, Copy);
nix::ioctl_readwrite!(uffdio_zeropage, 0xaa, 0x04, ZeroPage);

/// Watches mappings of this process. Each access to a missing page waits until the page is filled;
/// once this is dropped, missing pages are zeros again.
#[derive(Debug)]
pub struct Userfault(File);

impl Userfault {
    /// Opens one that also sees KVM's accesses. That needs a privilege, or access to
    /// `/dev/userfaultfd`, or `vm.unprivileged_userfaultfd`.
    pub fn open() -> io::Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: numbers only; the result is checked.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        let fd = match fd {
            // USERFAULTFD_IOC_NEW.
            // SAFETY: as above.
            ..0 => unsafe {
                let device = File::open("/dev/userfaultfd")?;
                Errno::result(libc::ioctl(device.as_raw_fd(), 0xaa00, flags))?.into()
            },
            fd => fd,
        };
        // SAFETY: the kernel has just opened it for this process.
        let file = unsafe { File::from_raw_fd(fd as i32) };
        let mut api = Api { api: UFFD_API, features: 0, ioctls: 0 };
        // SAFETY: the argument is of the type that the ioctl takes.
        unsafe { uffdio_api(file.as_raw_fd(), &mut api) }?;
        Ok(Self(file))
    }

    /// Watches a mapping of `len` bytes at `start`, of memory that is a memfd's or private.
    ///
    /// # Safety
    ///
    /// The mapping must exist as long as this watches it.
    pub unsafe fn watch(&self, start: u64, len: u64) -> io::Result<()> {
        let range = Range { start, len };
        let mut register = Register { range, mode: MODE_MISSING, ioctls: 0 };
        // SAFETY: the argument is of the type that the ioctl takes, and the caller keeps the mapping.
        unsafe { uffdio_register(self.0.as_raw_fd(), &mut register) }?;
        Ok(())
    }

    /// Ends that.
    pub fn forget(&self, start: u64, len: u64) -> io::Result<()> {
        let mut range = Range { start, len };
        // SAFETY: the argument is of the type that the ioctl takes.
        unsafe { uffdio_unregister(self.0.as_raw_fd(), &mut range) }?;
        Ok(())
    }

    /// Returns the address of the next access that waits; `None` if there is none.
    pub fn fault(&self) -> io::Result<Option<u64>> {
        let mut message = [0; MESSAGE];
        match (&self.0).read(&mut message) {
            Ok(MESSAGE) if message[0] == EVENT_PAGEFAULT => {
                let address = message[ADDRESS..ADDRESS + 8].try_into().expect("8 bytes");
                Ok(Some(u64::from_ne_bytes(address)))
            }
            Ok(_) => Err(io::Error::other("an unknown message of userfaultfd")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Fills missing pages at `start`, which is watched, with whole pages of `content`.
    pub fn fill(&self, start: u64, content: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < content.len() {
            let rest = &content[done..];
            let (dst, src) = (start + done as u64, rest.as_ptr() as u64);
            let mut copy = Copy { dst, src, len: rest.len() as u64, mode: 0, copy: 0 };
            // SAFETY: the argument is of the type that the ioctl takes; the kernel only reads the
            // content, and writes to nothing but pages that this watches.
            match unsafe { uffdio_copy(self.0.as_raw_fd(), &mut copy) } {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) if copy.copy > 0 => done += copy.copy as usize,
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Fills missing pages with zeros.
    pub fn fill_zeros(&self, start: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let range = Range { start: start + done, len: len - done };
            let mut zeros = ZeroPage { range, mode: 0, zeropage: 0 };
            // SAFETY: the argument is of the type that the ioctl takes, and the kernel writes to
            // nothing but pages that this watches.
            match unsafe { uffdio_zeropage(self.0.as_raw_fd(), &mut zeros) } {
                Ok(_) => return Ok(()),
                Err(Errno::EAGAIN) if zeros.zeropage > 0 => done += zeros.zeropage as u64,
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

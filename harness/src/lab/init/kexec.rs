//! Restarts the lab's kernel without its firmware, into the same or another one.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::utsname::uname;

use super::{InitError, mounts};
use crate::kernels::{Kernel, Kernels};
use crate::lab::initramfs::{self, Busybox, Contents};
use crate::lab::modules;
use crate::lab::restart::Request;
use crate::lab::settings::Settings;
use crate::lab::{BUSYBOX, KERNELS};

/// Restarts into the kernel that is asked for, with `settings`. All other processes have ended.
pub(super) fn into(request: &Request, settings: Settings) -> Result<Infallible, InitError> {
    let kernel = kernel(request)?;
    let what = || format!("restart into Linux {}", kernel.release);
    let vmlinuz = File::open(&kernel.vmlinuz).map_err(|e| InitError::new(what(), e))?;
    let initramfs = initramfs(&kernel, settings)?;
    let line = fs::read_to_string("/proc/cmdline").map_err(|e| InitError::new(what(), e))?;
    let line = CString::new(line.trim_end()).map_err(|e| InitError::new(what(), e))?;
    // SAFETY: both descriptors are open, and the string, whose length includes its end, lives until the call
    // returns; the kernel copies all of them.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            vmlinuz.as_raw_fd(),
            initramfs.as_raw_fd(),
            line.as_bytes_with_nul().len(),
            line.as_ptr(),
            0,
        )
    };
    Errno::result(loaded).map_err(|e| InitError::new(what(), e))?;
    mounts::leave_kept()?;
    reboot(RebootMode::RB_KEXEC).map_err(|e| InitError::new(what(), e))
}

fn kernel(request: &Request) -> Result<Kernel, InitError> {
    let find = "find the kernel to restart into";
    let kernels = Kernels::in_folder(Path::new(KERNELS)).map_err(InitError::step(find))?;
    if let Some(series) = &request.series {
        return kernels.of_series(series).cloned().map_err(InitError::step(find));
    }
    let running = uname().map_err(InitError::step("ask for the kernel's release"))?;
    let running = running.release().to_string_lossy().into_owned();
    let same = kernels.all().iter().find(|kernel| kernel.release == running);
    same.cloned().ok_or_else(|| {
        let why = format!("{running}, which runs now, is not in {KERNELS}: name another");
        InitError::new(find, why)
    })
}

/// The initramfs of the next kernel, with its modules, in a file without a name.
fn initramfs(kernel: &Kernel, settings: Settings) -> Result<File, InitError> {
    let step = |what: &'static str| InitError::step::<std::io::Error>(what);
    let wanted = modules::wanted(!settings.devices.is_empty(), settings.keeps_memory);
    let modules = modules::in_order(&kernel.modules, &wanted)
        .map_err(InitError::step("collect the next kernel's modules"))?;
    let paths = modules.iter().map(|module| initramfs::module_path(module).into());
    let settings = Settings { modules: paths.collect(), ..settings };
    let program = fs::read("/proc/self/exe").map_err(step("read this binary"))?;
    let busybox = Path::new(BUSYBOX).exists().then(|| Busybox::read(Path::new(BUSYBOX)));
    let busybox = busybox.transpose().map_err(step("read busybox"))?;
    let contents = Contents {
        program: &program,
        modules: &modules,
        busybox: busybox.as_ref(),
        settings: &settings,
    };
    let file = memfd_create(c"initramfs", MFdFlags::MFD_CLOEXEC);
    let file = File::from(file.map_err(InitError::step("create a file for the initramfs"))?);
    let mut to = BufWriter::new(&file);
    let written = initramfs::write(&contents, &mut to).and_then(|()| to.flush());
    drop(to);
    written.map_err(step("write the initramfs"))?;
    Ok(file)
}

//! Starts a VMM under a seccomp filter that denies `execve`, by `execveat`.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::AtomicPtr;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// Everything that the child needs, prepared in advance because the child must not allocate.
pub struct NoExecve {
    filter: BpfProgram,
    path: CString,
    argv: Strings,
    environment: Strings,
}

impl NoExecve {
    /// Prepares to execute `binary` with `arguments` and `environment`.
    pub fn new(
        binary: &Path,
        arguments: &[String],
        environment: &[(OsString, OsString)],
    ) -> io::Result<Self> {
        let path = CString::new(binary.as_os_str().as_bytes())?;
        let words = arguments.iter().map(|word| Ok(CString::new(word.as_str())?));
        let argv = std::iter::once(Ok(path.clone())).chain(words).collect::<io::Result<_>>()?;
        let variable = |(name, value): &(OsString, OsString)| {
            Ok(CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())?)
        };
        let environment = environment.iter().map(variable).collect::<io::Result<_>>()?;
        Ok(Self {
            filter: filter().map_err(io::Error::other)?,
            path,
            argv: Strings::new(argv),
            environment: Strings::new(environment),
        })
    }

    /// Installs the filter in this process and executes the binary; returns only on failure.
    pub fn exec(&self) -> io::Error {
        if let Err(e) = seccompiler::apply_filter(&self.filter) {
            return match e {
                seccompiler::Error::Prctl(e) | seccompiler::Error::Seccomp(e) => e,
                _ => io::ErrorKind::Other.into(),
            };
        }
        let (argv, environment) = (self.argv.pointers(), self.environment.pointers());
        let (at, flags) = (libc::AT_FDCWD, 0);
        // SAFETY: a NUL-terminated string and two null-terminated arrays of such, which live until
        // the call returns or this program is gone.
        unsafe {
            libc::syscall(libc::SYS_execveat, at, self.path.as_ptr(), argv, environment, flags)
        };
        io::Error::last_os_error()
    }
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let never = BTreeMap::from([(libc::SYS_execve, Vec::new())]);
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(never, SeccompAction::Allow, denied, arch)?.try_into()
}

/// Strings and the null-terminated array of pointers to them that `execve` takes.
struct Strings {
    _strings: Vec<CString>,
    /// Atomic only because raw pointers are not `Send` and `Sync`; they never change.
    pointers: Vec<AtomicPtr<libc::c_char>>,
}

impl Strings {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr().cast_mut());
        let pointers = pointers.chain([ptr::null_mut()]).map(AtomicPtr::new).collect();
        Self { _strings: strings, pointers }
    }

    fn pointers(&self) -> *const *const libc::c_char {
        // An `AtomicPtr` has the same representation as a pointer.
        self.pointers.as_ptr().cast()
    }
}

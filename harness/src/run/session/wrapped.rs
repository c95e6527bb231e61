//! A VMM that is started by a wrapper, such as valgrind, strace or a debugger (`--wrap`).

use std::path::Path;

use crate::backend::Backend;
use crate::observe::process::Executable;
use crate::process::environment::EnvironmentError;
use crate::process::vm::Vm;
use crate::run::session::Session;

/// What a wrapper makes of the VMM.
pub(super) enum Under {
    /// There is no wrapper.
    Nothing,
    /// It executes the VMM in its own process, or a program of its own in place of the VMM's file, as
    /// valgrind does. So must each update.
    Exec(Executable),
    /// The VMM is a child of the wrapper, which follows it when it executes another file, as strace
    /// and gdb do. Updates execute the VMM alone, or each would add a wrapper and move the VM to
    /// another process.
    Parent,
}

impl Under {
    /// Finds the VMM that listens, and what it executes in place of `file`.
    pub fn find(
        vm: &mut Vm,
        backend: &dyn Backend,
        file: &Executable,
    ) -> Result<Self, EnvironmentError> {
        if backend.wrapper().is_empty() {
            return Ok(Self::Nothing);
        }
        let path = backend.binary();
        let cannot =
            |e| EnvironmentError::Spawn { path: path.to_owned(), source: std::io::Error::other(e) };
        vm.find_under_wrapper(file).map_err(cannot)?;
        match vm.wrapper() {
            Some(_) => Ok(Self::Parent),
            None => Executable::of(vm.pid()).map(Self::Exec).map_err(cannot),
        }
    }

    /// What the VMM's process executes, if that depends on the wrapper.
    pub fn executable(&self) -> Option<&Executable> {
        match self {
            Self::Exec(executable) => Some(executable),
            Self::Nothing | Self::Parent => None,
        }
    }

    /// The words before the VMM's path in the command of an update by exec.
    pub fn of_updates<'a>(&self, backend: &'a dyn Backend) -> &'a [String] {
        match self {
            Self::Exec(_) => backend.wrapper(),
            Self::Nothing | Self::Parent => &[],
        }
    }
}

impl Session<'_> {
    /// Returns what a VMM of `backend` executes, started under the wrapper or not.
    pub(super) fn executes(
        &self,
        backend: &dyn Backend,
        wrapped: bool,
    ) -> Result<Executable, EnvironmentError> {
        match self.under.executable().filter(|_| wrapped) {
            // A wrapper that executes the VMM's own file executes that of another build too.
            Some(seen) if seen.inode != executable(self.options.backend.executable())?.inode => {
                Ok(seen.clone())
            }
            _ => executable(backend.executable()),
        }
    }
}

/// Identifies the executable at `path`.
pub(in crate::run) fn executable(path: &Path) -> Result<Executable, EnvironmentError> {
    let spawn = |source| EnvironmentError::Spawn { path: path.to_owned(), source };
    Executable::at(path).map_err(|e| spawn(std::io::Error::other(e)))
}

/// The words of the wrapper as they stand before the VMM's path in the timeline.
pub(super) fn prefix(backend: &dyn Backend) -> String {
    backend.wrapper().iter().map(|word| format!("{word} ")).collect()
}

//! A VMM that is started only to be asked what it has, and ends with that.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::observe::qmp::{Qmp, QmpFault};
use crate::run::{program, signals};

/// How long a greeting may take.
const GREETING: Duration = Duration::from_secs(10);

/// A process that ends with this.
pub(super) struct Asked(Mutex<Child>);

impl Asked {
    /// Starts it, silent.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // Registered, so that it goes with us.
        program::spawn(command.process_group(0)).map(Mutex::new).map(Self)
    }

    /// Connects to it.
    pub fn qmp(&self, socket: &Path) -> Result<Qmp, QmpFault> {
        let ended = || Some(format!("it has ended ({})", self.ended()?));
        Qmp::connect(socket, GREETING, Arc::new(|_, _| {}), ended)
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child().id() as i32
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
        signals::forget(child.id() as i32);
    }
}

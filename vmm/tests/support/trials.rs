//! Tests that the host may not support; they are then reported as ignored instead of passing.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// Why a test cannot run on this host, and what to do about it; `None` if it can.
pub type Missing = Option<String>;

/// Checks what every VM needs.
pub fn kvm() -> Missing {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    device.err().map(|error| format!("needs /dev/kvm: {error}"))
}

/// Creates a test called `name`, ignored with the reason if something is missing.
pub fn trial(
    name: impl Into<String>,
    missing: Missing,
    test: impl FnOnce() + Send + 'static,
) -> Trial {
    let trial = Trial::test(name, || {
        test();
        Ok(())
    });
    match missing {
        None => trial,
        // If everything must run, as in CI, a missing feature is an error.
        Some(reason) if is_set(std::env::var_os("CPR_REQUIRE_ALL")) => {
            Trial::test(trial.name(), || Err(reason.into()))
        }
        Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
    }
}

/// Whether a variable is set; an empty one is not.
pub fn is_set(value: Option<std::ffi::OsString>) -> bool {
    value.is_some_and(|value| !value.is_empty())
}

/// Creates a [`trial`] for each function, of the same name.
#[allow(unused_macros, reason = "some tests create their trials themselves")]
macro_rules! trials {
    ($missing:expr; $($test:ident),+ $(,)?) => {
        vec![$($crate::support::trials::trial(stringify!($test), $missing, $test)),+]
    };
}
pub(crate) use trials;

/// Runs the tests that the command line selects.
pub fn run(tests: Vec<Trial>) -> ExitCode {
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

//! Tests that may not be possible here, and then say so instead of passing.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

/// Why a test cannot run here, and what to do about it.
pub type Missing = Option<String>;

/// What any VM needs.
pub fn kvm() -> Missing {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    device.err().map(|error| format!("needs /dev/kvm: {error}"))
}

/// A test called `name`: run, or listed as ignored with the reason.
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
        // Where everything must run, as in CI, a miss is an error.
        Some(reason)
            if std::env::var_os("CPR_REQUIRE_ALL").is_some_and(|value| !value.is_empty()) =>
        {
            Trial::test(trial.name(), || Err(reason.into()))
        }
        Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
    }
}

/// One [`trial`] for each function, of the same name.
#[allow(unused_macros, reason = "some make their trials themselves")]
macro_rules! trials {
    ($missing:expr; $($test:ident),+ $(,)?) => {
        vec![$($crate::support::trials::trial(stringify!($test), $missing, $test)),+]
    };
}
pub(crate) use trials;

/// Runs the tests, as the command line says.
pub fn run(tests: Vec<Trial>) -> ExitCode {
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

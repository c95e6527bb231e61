//! Options for how VMMs are started: those of QEMU, and the wrapper of any VMM.

use std::path::Path;
use std::str::FromStr;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use super::CliError;
use crate::backend::qemu::{Accelerator, Setup};
use crate::backend::{Backend, Feature};
use crate::run::case::quoted;

/// Options that only QEMU takes.
#[derive(Args, Clone, Default)]
pub(super) struct QemuOptions {
    /// Machine type of QEMU, with its options [default: that of the scenario, else pc].
    #[arg(long, value_name = "TYPE[,OPTION=VALUE…]", value_parser = NonEmptyStringValueParser::new())]
    machine: Option<String>,
    /// Extra argument for QEMU, in each process of a VM; can be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    qemu_arg: Vec<String>,
    /// Accelerator of QEMU, with its options [default: kvm].
    #[arg(long, value_name = "kvm|tcg[,OPTION=VALUE…]")]
    accel: Option<Accelerator>,
}

impl QemuOptions {
    /// The first that was given.
    pub(super) fn first(&self) -> Option<&'static str> {
        let machine = self.machine.as_ref().map(|_| "--machine");
        let argument = || self.qemu_arg.first().map(|_| "--qemu-arg");
        machine.or_else(argument).or_else(|| self.accel.as_ref().map(|_| "--accel"))
    }

    /// An error if any was given and none of `backends` takes it.
    pub(super) fn check<'a>(
        &self,
        backends: impl IntoIterator<Item = &'a dyn Backend>,
    ) -> Result<(), CliError> {
        let Some(option) = self.first() else { return Ok(()) };
        let refused = |backend: &dyn Backend| backend.lacks(Feature::QemuOptions);
        let refused: Option<Vec<String>> = backends.into_iter().map(refused).collect();
        let Some(why) = refused else { return Ok(()) };
        let why = why.first().cloned().unwrap_or_default();
        Err(CliError::usage(format!(
            "cannot use {option}: {why}; choose QEMU with `--vmm qemu` or `--vmm PATH`"
        )))
    }

    /// The options with which `replay` does the same.
    fn option(&self) -> String {
        let machine = self.machine.iter().map(|machine| format!("--machine={machine}"));
        let accel = self.accel.iter().map(|accel| format!("--accel={accel}"));
        let arguments = self.qemu_arg.iter().map(|argument| format!("--qemu-arg={argument}"));
        machine
            .chain(accel)
            .chain(arguments)
            .map(|option| format!(" {}", quoted(&option)))
            .collect()
    }
}

/// How a VMM is started.
#[derive(Args, Clone, Default)]
pub(super) struct Starting {
    #[command(flatten)]
    pub(super) qemu: QemuOptions,
    /// Command that starts each VMM, such as `valgrind`, `strace -f -o /tmp/trace` or
    /// `gdb -batch -ex run --args`; times are not measured, and limits are ten times as long.
    #[arg(long, value_name = "COMMAND")]
    wrap: Option<Wrapper>,
}

/// A command that starts a program: text that is split into words like a shell does it.
#[derive(Clone)]
struct Wrapper {
    text: String,
    words: Vec<String>,
}

/// An error for text that is not a command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum WrapperError {
    #[error("unclosed quote, or a backslash at the end")]
    Unclosed,
    #[error("expected a command, such as valgrind")]
    Empty,
}

impl FromStr for Wrapper {
    type Err = WrapperError;

    fn from_str(text: &str) -> Result<Self, WrapperError> {
        let mut words = shlex::split(text).ok_or(WrapperError::Unclosed)?;
        let program =
            words.first_mut().filter(|word| !word.is_empty()).ok_or(WrapperError::Empty)?;
        // VMMs run in a folder of their own. A name without a slash is looked up in `$PATH`.
        if let Some(path) = program.contains('/').then(|| std::path::absolute(Path::new(program))) {
            *program = path.map_or_else(|_| program.clone(), |path| path.display().to_string());
        }
        Ok(Self { text: text.to_owned(), words })
    }
}

impl Starting {
    /// QEMU's options, without a wrapper.
    pub(super) fn of(qemu: QemuOptions) -> Self {
        Self { qemu, wrap: None }
    }

    /// What QEMU is started with.
    pub(super) fn setup(&self) -> Setup {
        let QemuOptions { machine, qemu_arg, accel } = self.qemu.clone();
        Setup {
            machine,
            accelerator: accel.unwrap_or_default(),
            arguments: qemu_arg,
            wrapper: self.wrapper().to_vec(),
        }
    }

    /// The words before a VMM's path.
    pub(super) fn wrapper(&self) -> &[String] {
        self.wrap.as_ref().map_or(&[], |wrapper| &wrapper.words)
    }

    /// The options with which `replay` starts `backend` in the same way.
    pub(super) fn option(&self, backend: &dyn Backend) -> String {
        let takes = backend.lacks(Feature::QemuOptions).is_none();
        if takes { self.all() } else { self.wrap_option() }
    }

    /// All options, as they were given.
    pub(super) fn all(&self) -> String {
        self.qemu.option() + &self.wrap_option()
    }

    fn wrap_option(&self) -> String {
        let wrap = self.wrap.iter();
        wrap.map(|wrap| format!(" {}", quoted(&format!("--wrap={}", wrap.text)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use rstest::rstest;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        starting: Starting,
    }

    fn parsed(line: &str) -> Result<Starting, clap::Error> {
        let words = shlex::split(line).unwrap();
        let words = ["cpr-harness".to_owned()].into_iter().chain(words);
        Line::try_parse_from(words).map(|line| line.starting)
    }

    #[rstest]
    #[case("", "")]
    #[case("--machine q35,hpet=off", " --machine=q35,hpet=off")]
    #[case("--accel tcg,thread=single", " --accel=tcg,thread=single")]
    #[case("--qemu-arg -device --qemu-arg a", " --qemu-arg=-device --qemu-arg=a")]
    #[case("--qemu-arg 'a b'", " '--qemu-arg=a b'")]
    #[case("--wrap 'strace -f'", " '--wrap=strace -f'")]
    fn options_are_repeated_for_a_replay(#[case] line: &str, #[case] option: &str) {
        let starting = parsed(line).unwrap();
        assert_eq!(starting.all(), option);
        assert_eq!(parsed(option).unwrap().all(), option);
    }

    #[rstest]
    #[case("gdb --args", Ok(&["gdb", "--args"][..]))]
    #[case("sh -c 'exec \"$@\"' sh", Ok(&["sh", "-c", "exec \"$@\"", "sh"][..]))]
    #[case("/bin/env", Ok(&["/bin/env"][..]))]
    #[case("", Err(WrapperError::Empty))]
    #[case(" ", Err(WrapperError::Empty))]
    #[case("'' a", Err(WrapperError::Empty))]
    #[case("gdb '", Err(WrapperError::Unclosed))]
    fn wrappers_are_split_like_a_shell_does(
        #[case] text: &str,
        #[case] expected: Result<&[&str], WrapperError>,
    ) {
        let words = text.parse::<Wrapper>().map(|wrapper| wrapper.words);
        let expected = expected.map(|words| words.iter().map(|&word| word.to_owned()).collect());
        assert_eq!(words, expected);
    }

    #[test]
    fn relative_path_of_a_wrapper_becomes_absolute() {
        let words = "./wrap -x".parse::<Wrapper>().map(|wrapper| wrapper.words).unwrap();
        assert!(words[0].starts_with('/') && words[0].ends_with("/wrap"), "{words:?}");
    }
}

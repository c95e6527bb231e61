//! The command that an update executes: it is checked and prepared while the guest still runs.

use std::ffi::{CString, OsString};
use std::fmt::Display;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;

use super::spawn::{self, Call, Spawned};
use super::variables::{self, STATE};

/// Errors from checking `cpr-exec-command`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The parameter was never set.
    #[error("cpr-exec mode requires setting cpr-exec-command")]
    Missing,
    /// The list has no words.
    #[error("cpr-exec-command is an empty list: its first word must be the binary to execute")]
    EmptyList,
    /// The first word is empty.
    #[error("the first word of cpr-exec-command is empty: it must be the binary to execute")]
    EmptyBinary,
    /// A word contains a NUL.
    #[error("word {index} of cpr-exec-command, \"{}\", has a NUL character", .word.escape_default())]
    Nul {
        /// Index of the word, from 0.
        index: usize,
        /// The word.
        word: String,
    },
}

/// The error of a command that cannot be executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot execute cpr-exec-command \"{command}\": {}", io::Error::from(*.errno))]
pub struct ExecError {
    command: String,
    errno: Errno,
}

impl ExecError {
    /// Creates the error of an `execve` of `command` that failed with `errno`.
    pub fn new(command: &str, errno: Errno) -> Self {
        let (command, errno) = seam!(exec_error(command, errno));
        Self { command: command.to_owned(), errno }
    }
}

/// A command ready for `execve`.
#[derive(Debug)]
pub struct ExecCommand {
    name: String,
    candidates: Vec<CString>,
    argv: Vec<CString>,
    environment: Vec<CString>,
}

impl ExecCommand {
    /// Checks `words` and looks the first one up in `PATH`.
    pub fn prepare(words: Option<&[String]>) -> Result<Self, CommandError> {
        let words = seam!(command(words.ok_or(CommandError::Missing)?));
        let binary = words.first().ok_or(CommandError::EmptyList)?;
        if binary.is_empty() {
            return Err(CommandError::EmptyBinary);
        }
        let mut argv = Vec::new();
        for (index, word) in words.iter().enumerate() {
            let nul = |_| CommandError::Nul { index, word: word.clone() };
            argv.push(CString::new(word.as_str()).map_err(nul)?);
        }
        let path = std::env::var_os("PATH");
        Ok(Self {
            name: binary.clone(),
            candidates: candidates(binary, path),
            argv,
            environment: environment(),
        })
    }

    /// Executes the command in this process, with the number of the descriptor that holds the CPR
    /// state in the environment. Returns only if no candidate could be executed.
    ///
    /// It calls `execve` on each candidate, never `execvp`: that would hand a file the kernel
    /// cannot execute to the shell, the exec would succeed, and the VM would be lost.
    pub fn exec(&self, state_fd: i32) -> ExecError {
        let variable = variable(STATE, state_fd);
        let others = self.environment.iter().map(|entry| entry.as_ptr());
        let environment: Vec<_> = std::iter::once(variable.as_ptr()).chain(others).collect();
        self.error(spawn::execute(&self.candidates, &self.argv, &environment))
    }

    /// Starts the command in a new process that dies with this thread, in a session of its own,
    /// with `variables` in its environment and `descriptors` moved as `Call::descriptors` says.
    pub fn spawn(
        &self,
        variables: &[(&str, String)],
        descriptors: Vec<(RawFd, RawFd)>,
    ) -> Result<Spawned, ExecError> {
        let more = variables.iter().map(|(name, value)| variable(name, value));
        let environment = more.chain(self.environment.iter().cloned()).collect();
        let (candidates, argv) = (self.candidates.clone(), self.argv.clone());
        spawn::spawn(Call { candidates, argv, environment, descriptors })
            .map_err(|errno| self.error(errno))
    }

    fn error(&self, errno: Errno) -> ExecError {
        ExecError::new(&self.name, errno)
    }

    /// Returns the first word, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn variable(name: &str, value: impl Display) -> CString {
    CString::new(format!("{name}={value}")).expect("neither names nor numbers have a NUL")
}

/// Returns the paths to try for `binary`: itself if it has a slash, otherwise one in each directory
/// of `path`, where an empty entry is the current directory (POSIX.1-2024, 8.3 "PATH").
fn candidates(binary: &str, path: Option<OsString>) -> Vec<CString> {
    let c_string = |bytes: Vec<u8>| CString::new(bytes).ok();
    if binary.contains('/') {
        return c_string(binary.into()).into_iter().collect();
    }
    let path = path.unwrap_or_else(|| "/usr/local/bin:/bin:/usr/bin".into()).into_vec();
    let in_directory = |directory: &[u8]| {
        let mut candidate = directory.to_vec();
        if !candidate.is_empty() {
            candidate.push(b'/');
        }
        candidate.extend_from_slice(binary.as_bytes());
        c_string(candidate)
    };
    path.split(|&byte| byte == b':').filter_map(in_directory).collect()
}

fn environment() -> Vec<CString> {
    std::env::vars_os()
        .filter(|(name, _)| name != STATE && !variables::is_of_rehearsal(name))
        .filter_map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            CString::new(entry).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rstest::rstest;

    use super::*;

    fn prepare(words: &[&str]) -> Result<ExecCommand, CommandError> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        ExecCommand::prepare(Some(&words))
    }

    #[test]
    fn bad_commands_are_refused_by_name() {
        let errors = [
            ExecCommand::prepare(None).unwrap_err(),
            prepare(&[]).unwrap_err(),
            prepare(&["", "x"]).unwrap_err(),
            prepare(&["vmm", "a\0b"]).unwrap_err(),
        ];
        insta::assert_debug_snapshot!(errors.map(|error| error.to_string()));
    }

    #[rstest]
    #[case("./vmm", "/a:/b", &["./vmm"])]
    #[case("vmm", "/a:/b", &["/a/vmm", "/b/vmm"])]
    #[case("vmm", ":/b:", &["vmm", "/b/vmm", "vmm"])]
    fn candidates_follow_path(#[case] binary: &str, #[case] path: &str, #[case] expected: &[&str]) {
        let found: Vec<_> = candidates(binary, Some(path.into()))
            .into_iter()
            .map(|candidate| candidate.into_string().unwrap())
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_missing_binary_is_named_with_its_errno() {
        let command = prepare(&["/nowhere/vmm", "--incoming"]).unwrap();
        insta::assert_snapshot!(command.exec(3), @r#"cannot execute cpr-exec-command "/nowhere/vmm": No such file or directory (os error 2)"#);
    }

    /// libc's `execvp` would start a shell here, and this test would never return.
    #[test]
    fn a_text_file_is_not_handed_to_the_shell() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("vmm");
        std::fs::write(&script, "exit 0\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let error = prepare(&[script.to_str().unwrap()]).unwrap().exec(3);
        assert_eq!(error.errno, Errno::ENOEXEC);
    }

    #[test]
    fn reports_denied_candidate_over_missing_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vmm"), "").unwrap();
        let mut command = prepare(&["vmm"]).unwrap();
        let path = format!("{}:/nowhere", dir.path().display());
        command.candidates = candidates("vmm", Some(path.into()));
        assert_eq!(command.exec(3).errno, Errno::EACCES);
    }
}

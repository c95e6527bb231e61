//! Update commands, valid and invalid, created in the case's folder.

mod damaging;
mod elf;
mod wrapping;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::backend::Backend;
use crate::process::environment::{EnvironmentError, make_folder};
use crate::process::program;
use crate::run::update::mounts::Mounted;
use crate::scenario::CommandKind;
pub use damaging::Targets;
pub use wrapping::unmet;
use wrapping::{Wrapping, wrapping};

/// The name under which the VMM is found through `PATH`.
pub const NAME_IN_PATH: &str = "vmm-by-name";

/// The folder in `PATH` that holds it.
pub const PATH_FOLDER: &str = "bin";

/// A command that is ready to be used.
pub struct Prepared {
    /// The value for `cpr-exec-command`; `None` leaves the parameter unset.
    pub words: Option<Vec<String>>,
    /// The trailing words: the arguments of the program, wherever that is in the command.
    pub arguments: Vec<String>,
    /// Whether the command starts the VMM under the wrapper.
    pub wrapped: bool,
    /// The word that an error must name.
    pub culprit: String,
    /// Held open for as long as the update takes.
    _busy: Option<File>,
    /// Mounted for as long as the update takes.
    _mounted: Option<Mounted>,
}

/// Creates the files that update commands need.
pub struct CommandBuilder<'a> {
    /// The folder for the files.
    pub folder: &'a Path,
    /// The VMM.
    pub backend: &'a dyn Backend,
    /// The words before its path in commands that execute it as it is; those that bring their own
    /// wrapper, or must fail, go without.
    pub wrapper: &'a [String],
}

impl CommandBuilder<'_> {
    /// Creates what `kind` needs; `arguments` are those of a valid update, and `targets` is what
    /// the command can damage in it.
    pub fn prepare(
        &self,
        kind: CommandKind,
        mut arguments: Vec<String>,
        targets: Targets<'_>,
    ) -> Result<Prepared, EnvironmentError> {
        let (mut busy, mut mounted, mut before) = (None, None, Vec::new());
        let word = match kind {
            _ if kind.forks() || kind.restricts_process() => {
                // If `flock` created it, it would count as a file leaked by the update.
                let lock = match kind {
                    CommandKind::ForksFlock => self.file("lock", b"")?,
                    _ => String::new(),
                };
                match wrapping(kind, &self.binary(), &lock) {
                    Some(Wrapping::Script(script)) => self.program("wrapper", script.as_bytes())?,
                    Some(Wrapping::Words(words)) => {
                        before = words;
                        before.remove(0)
                    }
                    None => self.binary(),
                }
            }
            CommandKind::Missing | CommandKind::EmptyList => self.binary(),
            CommandKind::Good
            | CommandKind::Deferred
            | CommandKind::Nul
            | CommandKind::OtherMemory
            | CommandKind::OtherCpus
            | CommandKind::OtherSerial
            | CommandKind::NoQmp
            | CommandKind::UnknownOption
            | CommandKind::NoIncoming
            | CommandKind::OlderState
            | CommandKind::NewerState
            | CommandKind::OtherIncoming => self.under_wrapper(self.binary(), &mut before),
            CommandKind::True => "true".to_owned(),
            CommandKind::False => "false".to_owned(),
            CommandKind::Sleep => "sleep".to_owned(),
            CommandKind::Yes => "yes".to_owned(),
            CommandKind::Cat => "cat".to_owned(),
            CommandKind::ScriptExits => self.program("exits", b"#!/bin/sh\nexit 0\n")?,
            CommandKind::ScriptKillsItself => {
                self.program("kills-itself", b"#!/bin/sh\nkill -KILL $$\n")?
            }
            CommandKind::ScriptDaemonizes => {
                self.program("daemonizes", b"#!/bin/sh\nsetsid sleep 1000 &\nexit 0\n")?
            }
            CommandKind::ForeignElf => self.program("foreign-elf", &elf::foreign())?,
            CommandKind::Elf32 => self.program("elf-32", &elf::i386())?,
            CommandKind::TruncatedVmm => self.truncated_vmm()?,
            CommandKind::NoexecMount => {
                let at = self.folder.join("vmm-on-noexec-mount");
                let bound = Mounted::not_executable(self.backend.binary(), at)?;
                let path = bound.at.to_string_lossy().into_owned();
                mounted = Some(bound);
                path
            }
            CommandKind::Wrapper
            | CommandKind::TruncatesState
            | CommandKind::FlipsState
            | CommandKind::EmptiesState
            | CommandKind::ReplacesState
            | CommandKind::StateBecomesFifo
            | CommandKind::StateBecomesDirectory
            | CommandKind::RemovesState
            | CommandKind::EnvNotANumber
            | CommandKind::EnvNegative
            | CommandKind::EnvHuge
            | CommandKind::EnvClosed
            | CommandKind::EnvNotMemfd
            | CommandKind::EnvEmpty
            | CommandKind::EnvRemoved
            | CommandKind::EnvOtherFd
            | CommandKind::WithoutKvm => {
                self.program("wrapper", damaging::script(kind, &self.binary(), targets).as_bytes())?
            }
            CommandKind::InPath => {
                self.path_folder()?;
                self.under_wrapper(NAME_IN_PATH.to_owned(), &mut before)
            }
            CommandKind::EmptyWord => String::new(),
            CommandKind::Enoent => self.path("no-such-vmm"),
            CommandKind::EnoentInPath => "no-such-vmm-in-any-folder".to_owned(),
            CommandKind::EaccesNotExecutable => self.file("not-executable", b"#!/bin/true\n")?,
            CommandKind::EaccesDirectory => self.directory("directory")?,
            CommandKind::EnoexecText => self.program("text", b"This is no program.\n")?,
            CommandKind::EnoexecElf => self.truncated_elf()?,
            CommandKind::Enotdir => format!("{}/vmm", self.file("plain-file", b"")?),
            CommandKind::Eloop => self.loop_link()?,
            CommandKind::Enametoolong => self.path(&"n".repeat(300)),
            CommandKind::E2big => {
                // One word is limited to 128 KiB (MAX_ARG_STRLEN).
                arguments.push("x".repeat(200 << 10));
                self.under_wrapper(self.binary(), &mut before)
            }
            CommandKind::Etxtbsy => {
                let path = self.program("busy", b"#!/bin/true\n")?;
                let open = File::options().append(true).open(&path);
                busy = Some(open.map_err(EnvironmentError::file("open", &path))?);
                path
            }
            other => unreachable!("{other:?} is a wrapper"),
        };
        if kind == CommandKind::Nul {
            arguments.push("a\0b".into());
        }
        match kind {
            CommandKind::Sleep => arguments = vec!["1000".into()],
            CommandKind::True | CommandKind::False | CommandKind::Yes | CommandKind::Cat => {
                arguments.clear();
            }
            _ => self.backend.change_arguments(kind, &mut arguments),
        }
        let wrapped = self.wrapper.first() == Some(&word);
        let words = match kind {
            CommandKind::Missing => None,
            CommandKind::EmptyList => Some(Vec::new()),
            _ => Some([vec![word.clone()], before, arguments.clone()].concat()),
        };
        Ok(Prepared { words, arguments, wrapped, culprit: word, _busy: busy, _mounted: mounted })
    }

    /// Creates the folder for `PATH` in which the VMM is found by name.
    pub fn path_folder(&self) -> Result<(), EnvironmentError> {
        let folder = PathBuf::from(self.directory(PATH_FOLDER)?);
        let (link, new) = (folder.join(NAME_IN_PATH), folder.join("new"));
        symlink(self.backend.binary(), &new)
            .and_then(|()| fs::rename(&new, &link))
            .map_err(EnvironmentError::file("create", &link))
    }

    /// Puts the wrapper in front of `program`: returns the first word, and appends the others to `rest`.
    fn under_wrapper(&self, program: String, rest: &mut Vec<String>) -> String {
        let Some((first, others)) = self.wrapper.split_first() else { return program };
        rest.extend(others.iter().cloned().chain([program]));
        first.clone()
    }

    fn binary(&self) -> String {
        self.backend.binary().to_string_lossy().into_owned()
    }

    fn path(&self, name: &str) -> String {
        // The case has checked that its folder is valid UTF-8.
        self.folder.join(name).to_string_lossy().into_owned()
    }

    fn file(&self, name: &str, content: &[u8]) -> Result<String, EnvironmentError> {
        let path = self.path(name);
        fs::write(&path, content).map_err(EnvironmentError::file("write", &path))?;
        Ok(path)
    }

    fn program(&self, name: &str, content: &[u8]) -> Result<String, EnvironmentError> {
        let path = self.path(name);
        program::write(Path::new(&path), content)
            .map_err(EnvironmentError::file("write", &path))?;
        Ok(path)
    }

    fn directory(&self, name: &str) -> Result<String, EnvironmentError> {
        let path = self.path(name);
        make_folder(Path::new(&path))?;
        Ok(path)
    }

    fn truncated_vmm(&self) -> Result<String, EnvironmentError> {
        let binary = self.backend.executable();
        let content = fs::read(binary).map_err(EnvironmentError::file("read", binary))?;
        self.program("truncated-vmm", elf::half(&content))
    }

    /// An executable that ends where its entry point would follow: the bytes are the same for each
    /// build, since a VMM that passes it to a shell fails as they say.
    fn truncated_elf(&self) -> Result<String, EnvironmentError> {
        const START: &[u8; 24] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x3e\0\x01\0\0\0";
        self.program("truncated-elf", START)
    }

    fn loop_link(&self) -> Result<String, EnvironmentError> {
        let path = self.path("loop");
        if fs::symlink_metadata(&path).is_err() {
            symlink("loop", &path).map_err(EnvironmentError::file("create", &path))?;
        }
        Ok(path)
    }
}

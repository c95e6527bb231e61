//! Commands for an update, good and bad, made in the case's folder.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{EnvironmentError, program};
use crate::scenario::CommandKind;

/// Name under which the VMM is found through `PATH`.
pub const NAME_IN_PATH: &str = "vmm-by-name";

/// The folder of `PATH` in which it is.
pub const PATH_FOLDER: &str = "bin";

/// A command that is ready to be used.
pub struct Prepared {
    /// What `cpr-exec-command` is set to; none: it is not set.
    pub words: Option<Vec<String>>,
    /// What an error must name.
    pub culprit: String,
    /// Held open for as long as the update takes.
    _busy: Option<File>,
}

/// Folders that commands are made in.
pub struct Workshop<'a> {
    /// A folder for this.
    pub folder: &'a Path,
    /// The VMM.
    pub binary: &'a str,
}

impl Workshop<'_> {
    /// Makes what `kind` needs; `arguments` are those of a good update.
    pub fn prepare(
        &self,
        kind: CommandKind,
        mut arguments: Vec<String>,
    ) -> Result<Prepared, EnvironmentError> {
        let mut busy = None;
        let word = match kind {
            CommandKind::Good
            | CommandKind::Missing
            | CommandKind::EmptyList
            | CommandKind::Nul
            | CommandKind::OtherMemory
            | CommandKind::OtherCpus
            | CommandKind::OtherSerial
            | CommandKind::NoQmp
            | CommandKind::UnknownOption
            | CommandKind::NoIncoming
            | CommandKind::OtherIncoming => self.binary.to_owned(),
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
            CommandKind::ForeignElf => self.foreign_elf()?,
            CommandKind::Wrapper => self.wrapper()?,
            CommandKind::InPath => NAME_IN_PATH.to_owned(),
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
                // One word may have 128 KiB at most (MAX_ARG_STRLEN).
                arguments.push("x".repeat(200 << 10));
                self.binary.to_owned()
            }
            CommandKind::Etxtbsy => {
                let path = self.program("busy", b"#!/bin/true\n")?;
                let open = File::options().append(true).open(&path);
                busy = Some(open.map_err(EnvironmentError::file("open", &path))?);
                path
            }
        };
        if kind == CommandKind::Nul {
            arguments.push("a\0b".into());
        }
        match kind {
            CommandKind::Sleep => arguments = vec!["1000".into()],
            CommandKind::True | CommandKind::False | CommandKind::Yes | CommandKind::Cat => {
                arguments.clear();
            }
            _ => change_arguments(kind, &mut arguments),
        }
        let words = match kind {
            CommandKind::Missing => None,
            CommandKind::EmptyList => Some(Vec::new()),
            _ => Some([vec![word.clone()], arguments].concat()),
        };
        Ok(Prepared { words, culprit: word, _busy: busy })
    }

    /// Makes the folder of `PATH` in which the VMM is found by name.
    pub fn path_folder(&self) -> Result<PathBuf, EnvironmentError> {
        let folder = PathBuf::from(self.directory(PATH_FOLDER)?);
        let link = folder.join(NAME_IN_PATH);
        symlink(self.binary, &link).map_err(EnvironmentError::file("create", &link))?;
        Ok(folder)
    }

    fn path(&self, name: &str) -> String {
        // The case checked that its folder is UTF-8.
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

    fn wrapper(&self) -> Result<String, EnvironmentError> {
        let quoted = self.binary.replace('\'', r"'\''");
        self.program("wrapper", format!("#!/bin/sh\nexec '{quoted}' \"$@\"\n").as_bytes())
    }

    fn truncated_elf(&self) -> Result<String, EnvironmentError> {
        let own = crate::carry::own_binary().unwrap_or_default();
        let start = File::open(&own)
            .and_then(|mut file| {
                let mut start = [0; 40];
                std::io::Read::read_exact(&mut file, &mut start).map(|()| start)
            })
            .map_err(EnvironmentError::file("read", &own))?;
        self.program("truncated-elf", &start)
    }

    /// As long as a header, of a machine that this one is not.
    fn foreign_elf(&self) -> Result<String, EnvironmentError> {
        const EM_S390: u8 = 22;
        let mut header = [0_u8; 64];
        // ELF, 64 bit, big-endian, version 1; an executable.
        header[..7].copy_from_slice(b"\x7fELF\x02\x02\x01");
        (header[17], header[19], header[23]) = (2, EM_S390, 1);
        self.program("foreign-elf", &header)
    }

    fn loop_link(&self) -> Result<String, EnvironmentError> {
        let path = self.path("loop");
        if fs::symlink_metadata(&path).is_err() {
            symlink("loop", &path).map_err(EnvironmentError::file("create", &path))?;
        }
        Ok(path)
    }
}

/// Where the value of `option` stands.
fn value_of(arguments: &[String], option: &str) -> Option<usize> {
    arguments.iter().position(|word| word == option).map(|at| at + 1)
}

/// Makes the command line of a good update describe something else.
fn change_arguments(kind: CommandKind, arguments: &mut Vec<String>) {
    let change = match kind {
        CommandKind::OtherMemory => {
            value_of(arguments, "--memory").map(|at| (at, "32M".to_owned()))
        }
        CommandKind::OtherCpus => value_of(arguments, "--cpus").map(|at| (at, "7".to_owned())),
        CommandKind::OtherSerial => {
            value_of(arguments, "--serial").map(|at| (at, "null".to_owned()))
        }
        CommandKind::OtherIncoming => {
            value_of(arguments, "--incoming").map(|at| (at, "file:/no/such/state".to_owned()))
        }
        _ => None,
    };
    if let Some((at, value)) = change {
        arguments[at] = value;
    }
    let removed = match kind {
        CommandKind::NoQmp => value_of(arguments, "--qmp"),
        CommandKind::NoIncoming => value_of(arguments, "--incoming"),
        _ => None,
    };
    if let Some(at) = removed {
        arguments.drain(at - 1..=at);
    }
    if kind == CommandKind::UnknownOption {
        arguments.push("--no-such-option".to_owned());
    }
}

/// Makes a folder that may be there already, but none above it: once the case's folder has been
/// removed it stays so.
pub(super) fn make_folder(path: &Path) -> Result<(), EnvironmentError> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(EnvironmentError::file("create", path)(e))
        }
        _ => Ok(()),
    }
}

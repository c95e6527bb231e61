//! The initramfs of a lab: this binary, the modules and busybox.

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use cpio::newc::{Builder, ModeFileType, trailer};

use super::modules::Module;
use super::settings::{FILE, Settings};
use super::{BUSYBOX, PROGRAM};

/// Folders that the first process mounts on, and others that programs expect.
const FOLDERS: [&str; 12] =
    ["bin", "dev", "etc", "lab", "lab/modules", "proc", "root", "run", "sys", "tmp", "usr", "var"];

/// What is in the initramfs.
pub struct Contents<'a> {
    /// The harness.
    pub program: &'a [u8],
    /// The modules.
    pub modules: &'a [Module],
    /// Its commands, for a shell and for scenarios.
    pub busybox: Option<&'a Busybox>,
    /// What the first process does.
    pub settings: &'a Settings,
}

/// A static busybox.
pub struct Busybox {
    /// The executable.
    pub program: Vec<u8>,
    /// The commands that it has.
    pub commands: Vec<String>,
}

impl Busybox {
    /// Reads the busybox at `path`, and asks it for its commands.
    pub fn read(path: &Path) -> io::Result<Self> {
        let output = Command::new(path).arg("--list").output()?;
        let names = String::from_utf8_lossy(&output.stdout);
        let commands = names.lines().filter(|name| *name != "busybox").map(str::to_owned).collect();
        Ok(Self { program: std::fs::read(path)?, commands })
    }
}

/// Returns the path of a module inside.
pub fn module_path(module: &Module) -> String {
    format!("/lab/modules/{}.ko", module.name)
}

/// Writes the initramfs in the format newc, uncompressed: that is faster to unpack than to copy.
pub fn write(contents: &Contents<'_>, to: impl Write) -> io::Result<()> {
    let mut archive = Archive { to, next: 1 };
    for folder in FOLDERS {
        archive.add(folder, ModeFileType::Directory, 0o755, &[])?;
    }
    archive.file(PROGRAM, 0o755, contents.program)?;
    for module in contents.modules {
        archive.file(&module_path(module), 0o644, &module.object)?;
    }
    if let Some(Busybox { program, commands }) = contents.busybox {
        archive.file(BUSYBOX, 0o755, program)?;
        for command in commands {
            let path = Path::new(BUSYBOX).with_file_name(command);
            archive.link(&path.to_string_lossy(), BUSYBOX)?;
        }
    }
    archive.link("/sbin", "bin")?;
    archive.link("/usr/bin", "../bin")?;
    archive.link("/usr/sbin", "../bin")?;
    archive.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    archive.file("/etc/group", 0o644, b"root:x:0:\n")?;
    archive.file(FILE, 0o644, &serde_json::to_vec(contents.settings)?)?;
    trailer(archive.to).map(drop)
}

struct Archive<W> {
    to: W,
    /// The next inode's number.
    next: u32,
}

impl<W: Write> Archive<W> {
    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.add(path, ModeFileType::Regular, mode, content)
    }

    fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.add(path, ModeFileType::Symlink, 0o777, target.as_bytes())
    }

    fn add(&mut self, path: &str, kind: ModeFileType, mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let entry = Builder::new(path.trim_start_matches('/'))
            .ino(self.next)
            .mode(mode)
            .set_mode_file_type(kind);
        self.next += 1;
        let mut entry = entry.write(&mut self.to, size);
        entry.write_all(content)?;
        entry.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::settings::{self, Terminals};
    use cpio::newc::Reader;
    use std::io::Read;

    #[test]
    fn an_initramfs_has_what_the_first_process_needs() {
        let settings = Settings {
            modules: vec!["/lab/modules/kvm.ko".into()],
            shares: Vec::new(),
            devices: Vec::new(),
            huge_pages: 0,
            keeps_memory: false,
            restarts: 0,
            written_before: [0; 2],
            command: settings::Command {
                file: PROGRAM.into(),
                arguments: vec!["cpr-harness".into(), "list".into()],
                environment: Vec::new(),
                folder: "/work".into(),
                terminals: Terminals::default(),
            },
        };
        let modules = [Module { name: "kvm".into(), object: b"kvm".to_vec() }];
        let busybox = Busybox { program: b"busybox".to_vec(), commands: vec!["sh".to_owned()] };
        let contents = Contents {
            program: b"harness",
            modules: &modules,
            busybox: Some(&busybox),
            settings: &settings,
        };
        let mut archive = Vec::new();
        write(&contents, &mut archive).unwrap();

        let mut rest = archive.as_slice();
        let mut lines = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            let line = format!("{:06o} {}", entry.mode(), entry.name());
            let is_settings = entry.name() == "lab.json";
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            if is_settings {
                assert_eq!(serde_json::from_str::<Settings>(&content).unwrap(), settings);
                content = "(settings)".into();
            }
            lines.push(format!("{line} {content}").trim_end().to_owned());
            rest = reader.finish().unwrap();
        }
        insta::assert_snapshot!(lines.join("\n"));
    }
}

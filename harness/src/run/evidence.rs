//! The evidence folder of a case: everything needed to understand the case and to run it again.

pub mod start;
pub mod timeline;
pub mod watchdog;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};

use super::verdict::Report;
use crate::backend::{Backend, Image};
use crate::observe::files::Files;
use crate::observe::observation::Observation;
use crate::observe::startup::Startup;
use crate::process::environment::EnvironmentError;
use crate::process::signals;
use crate::run::Options;
use crate::run::evidence::start::{START, Start};
use crate::run::evidence::timeline::{TIMELINE, Timeline};
use crate::scenario::{Case, Vm};

/// The case, with every choice made.
pub const CASE: &str = "case.toml";
/// The report on the case, as JSON.
pub const VERDICT: &str = "verdict.json";
/// The VMM's log.
pub const VMM_LOG: &str = "vmm.log";
/// The folder with the evidence of what happened before the host was restarted for the first, second, … time.
const BEFORE_RESTART: &str = "before-restart-";
/// The name of the file with guest RAM, in the folder of the case.
pub const RAM: &str = "guest.ram";

/// The size limits during a soak: of each of the two timeline files, and of each log.
const TIMELINE_BYTES: usize = 8 << 20;
const LOG_BYTES: u64 = 4 << 20;

/// The folder of a case and the files being written there.
pub struct Evidence {
    /// The folder, absolute.
    pub folder: PathBuf,
    /// The timeline.
    pub timeline: Arc<Timeline>,
    tails: Vec<Tail>,
    _lock: Flock<File>,
}

impl Evidence {
    /// Creates an empty folder for `case`, with the case and the start marker in it.
    pub fn create(case: &Case, options: &Options) -> Result<Self, EnvironmentError> {
        Self::create_after(empty, case, options)
    }

    /// The same for the rest of a case whose host was restarted; keeps the evidence of what was before that in a
    /// folder of its own.
    pub fn continued(case: &Case, options: &Options) -> Result<Self, EnvironmentError> {
        Self::create_after(set_aside, case, options)
    }

    fn create_after(
        clear: fn(&Path) -> Result<(), EnvironmentError>,
        case: &Case,
        options: &Options,
    ) -> Result<Self, EnvironmentError> {
        let folder = std::path::absolute(options.evidence.join(folder_name(&case.name)))
            .map_err(EnvironmentError::file("find", &options.evidence))?;
        fs::create_dir_all(&folder).map_err(EnvironmentError::file("create", &folder))?;
        let lock = File::open(&folder).map_err(EnvironmentError::file("open", &folder))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| EnvironmentError::InUse(folder.clone()))?;
        clear(&folder)?;
        write_case(&folder, case)?;
        write_json(&folder, START, &Start::now(case, options))?;
        let path = folder.join(TIMELINE);
        let timeline = Timeline::create(&path).map_err(EnvironmentError::file("create", &path))?;
        let tail =
            |source, file: &str| Tail { source, path: folder.join(file), read: 0, punched: 0 };
        let tails = vec![
            tail("vmm", VMM_LOG),
            tail("console", "console.log"),
            tail("serial", "serial.log"),
        ];
        Ok(Self { folder, timeline: Arc::new(timeline), tails, _lock: lock })
    }

    /// Returns the files of the VM: all in this folder, except the sockets, whose paths must be
    /// short, and the PID file.
    pub fn files(
        &self,
        work: &Path,
        guest: &str,
        image: Image<'_>,
    ) -> Result<Files, EnvironmentError> {
        let kernel = self.folder.join(format!("{guest}.{}", image.ending));
        fs::write(&kernel, image.bytes).map_err(EnvironmentError::file("write", &kernel))?;
        self.files_of(work, &kernel, None)
    }

    /// Writes the initramfs of a Linux guest that boots `kernel`, and returns the paths of its files.
    pub fn linux_files(&self, work: &Path, kernel: &Path) -> Result<Files, EnvironmentError> {
        let initrd = self.folder.join("linux.cpio");
        let written = fs::write(&initrd, guest_images::INITRAMFS);
        written.map_err(EnvironmentError::file("write", &initrd))?;
        self.files_of(work, kernel, Some(&initrd))
    }

    fn files_of(
        &self,
        work: &Path,
        kernel: &Path,
        initrd: Option<&Path>,
    ) -> Result<Files, EnvironmentError> {
        Ok(Files {
            kernel: utf8(kernel)?,
            initrd: initrd.map(utf8).transpose()?,
            ram: utf8(&work.join(RAM))?,
            qmp: utf8(&work.join("qmp.sock"))?,
            serial: utf8(&self.folder.join("serial.log"))?,
            serial_socket: utf8(&work.join("serial.sock"))?,
            log: utf8(&self.folder.join(VMM_LOG))?,
            pid_file: utf8(&work.join("vmm.pid"))?,
            suffix: String::new(),
        })
    }

    /// Returns what the start of `vm` leaves in the file system.
    pub fn startup(&self, files: &Files, vm: &Vm, backend: &dyn Backend) -> Startup {
        let control = backend.control_socket(files);
        let sockets: Vec<&str> = files.sockets(vm).into_iter().chain(control.as_deref()).collect();
        Startup::of(&sockets, &files.pid_file)
    }

    /// Returns the file for the VMM's standard output and error.
    pub fn console(&self) -> PathBuf {
        self.tails[1].path.clone()
    }

    /// Returns the file for the standard output and error of the VMM with these `files`.
    pub fn console_of(&self, files: &Files) -> PathBuf {
        self.folder.join(format!("console{}.log", files.suffix))
    }

    /// Collects what the VMM has logged, and from now on what the VMM with these `files` logs.
    pub fn follow(&mut self, files: &Files) {
        self.collect();
        let console = self.console_of(files);
        for (tail, path) in self.tails.iter_mut().zip([PathBuf::from(&files.log), console]) {
            (tail.path, tail.read, tail.punched) = (path, 0, 0);
        }
    }

    /// Returns the VMM's log from where it was last collected.
    pub fn vmm_log(&self) -> Tail {
        self.tails[0].clone()
    }

    /// Returns the VMM's standard output and error from where they were last collected.
    pub fn console_log(&self) -> Tail {
        self.tails[1].clone()
    }

    /// Copies what was logged since the last call into the timeline.
    pub fn collect(&mut self) {
        for tail in &mut self.tails {
            let new = tail.since();
            let whole = new.rfind('\n').map_or(0, |end| end + 1);
            tail.read += whole as u64;
            for line in new[..whole].lines() {
                self.timeline.say_stamped(tail.source, line);
            }
        }
    }

    /// Limits disk use: keeps only the newest part of the timeline and of the logs.
    pub fn bound(&mut self) {
        // Best effort: what cannot be freed stays.
        let _ = self.timeline.rotate(TIMELINE_BYTES);
        for tail in &mut self.tails {
            let _ = tail.punch();
        }
    }

    /// Writes an observation of the VMM to `proc-NAME.txt`.
    pub fn observation(&self, name: &str, seen: &Observation) -> Result<(), EnvironmentError> {
        write(&self.folder, &format!("proc-{name}.txt"), &describe(seen))
    }

    /// Copies the state files from the folder `work`; skips those that cannot be copied.
    pub fn keep_states(&self, work: &Path) {
        for file in fs::read_dir(work).into_iter().flatten().flatten() {
            let name = file.file_name();
            if name.to_string_lossy().starts_with("state-") && file.path().is_file() {
                let _ = fs::copy(file.path(), self.folder.join(name));
            }
        }
    }

    /// Writes the verdict and closes the timeline.
    pub fn finish(&mut self, report: &Report) -> Result<(), EnvironmentError> {
        self.collect();
        for tail in &mut self.tails {
            tail.close_up().map_err(EnvironmentError::file("shorten", &tail.path))?;
        }
        let path = self.folder.join(TIMELINE);
        self.timeline.finish().map_err(EnvironmentError::file("write", &path))?;
        write_verdict(&self.folder, report)
    }
}

/// Writes the verdict into the evidence folder `folder`, unless a signal is ending this process.
pub fn write_verdict(folder: &Path, report: &Report) -> Result<(), EnvironmentError> {
    let _not_ending = signals::unless_ending();
    write_json(folder, VERDICT, report)
}

/// A log that grows.
#[derive(Clone)]
pub struct Tail {
    source: &'static str,
    path: PathBuf,
    read: u64,
    /// Bytes at the beginning that were freed (hole punched).
    punched: u64,
}

impl Tail {
    /// Frees the disk space of all but the newest part. The file keeps its length and its writer
    /// keeps its position, because checks compare that position.
    fn punch(&mut self) -> std::io::Result<()> {
        let end = self.read.saturating_sub(LOG_BYTES) / LOG_BYTES * LOG_BYTES;
        if end <= self.punched {
            return Ok(());
        }
        let file = File::options().write(true).open(&self.path)?;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, hole, 0, i64::try_from(end).unwrap_or(i64::MAX))?;
        self.punched = end;
        Ok(())
    }

    /// Removes the freed part from the file, which has no writer any more.
    fn close_up(&mut self) -> std::io::Result<()> {
        if self.punched == 0 {
            return Ok(());
        }
        let mut rest = Vec::new();
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.punched))?;
        file.read_to_end(&mut rest)?;
        // The first line may be truncated at its start.
        let whole = rest.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        fs::write(&self.path, &rest[whole..])?;
        (self.punched, self.read) = (0, (rest.len() - whole) as u64);
        Ok(())
    }

    /// Returns what was added since the last collection; nothing if the log cannot be read.
    pub fn since(&self) -> String {
        let mut new = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read))?;
            file.read_to_end(&mut new)
        });
        // No lossy conversion: that would change the length.
        read.ok().and_then(|_| String::from_utf8(new).ok()).unwrap_or_default()
    }
}

/// Writes the case file that `replay` runs.
pub fn write_case(folder: &Path, case: &Case) -> Result<(), EnvironmentError> {
    let text = toml::to_string(case).unwrap_or_else(|e| format!("# {e}\n"));
    // Atomically: a soak rewrites the file repeatedly and may be killed.
    let (new, path) = (folder.join("case.toml.new"), folder.join(CASE));
    std::fs::write(&new, format!("# {}\n{text}", case.name))
        .and_then(|()| std::fs::rename(&new, &path))
        .map_err(EnvironmentError::file("write", &path))
}

/// Returns a case's name as a relative path that needs no quoting in a shell.
pub fn folder_name(case: &str) -> String {
    case.replace('[', ",").replace(']', "")
}

fn describe(seen: &Observation) -> String {
    let Observation { process, executable, fds, children, ram, digest, mailbox, .. } = seen;
    let mut text = format!(
        "{process:?}\nexecutable {}\nchildren {children:?}\nstatus {:?}\nquery-migrate {}\nparameters {}\n\ndescriptors\n{fds}\nRAM {} bytes, file {:?}, digest {digest:016x?}\n",
        executable.path.display(),
        seen.status,
        seen.migrate,
        seen.parameters,
        ram.bytes,
        ram.file
    );
    for mapping in &ram.mappings {
        text.push_str(&format!("mapped {mapping:x?}\n"));
    }
    for (item, value) in seen.facts.iter().chain(seen.files.iter()) {
        text.push_str(&format!("fact {item}: {value}\n"));
    }
    text.push_str(&format!("page frames {:x?}\n", ram.frames));
    let mailbox = serde_json::to_string_pretty(mailbox).unwrap_or_default();
    text.push_str(&format!("\nmailbox {mailbox}\n\nenvironment\n"));
    // Names only: the values may be secrets.
    for word in &seen.environ {
        text.push_str(word.split('=').next().unwrap_or_default());
        text.push('\n');
    }
    text
}

/// Returns `path` as text, as QMP takes it.
pub fn utf8(path: &Path) -> Result<String, EnvironmentError> {
    path.to_str().map(str::to_owned).ok_or_else(|| EnvironmentError::NotUtf8(path.to_owned()))
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), EnvironmentError> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(EnvironmentError::file("write", &path))
}

fn write_json(
    folder: &Path,
    name: &str,
    value: &impl serde::Serialize,
) -> Result<(), EnvironmentError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| EnvironmentError::file("write", folder.join(name))(e.into()))?;
    write(folder, name, &(text + "\n"))
}

/// Moves the evidence of a case up to a restart of the host to a folder below.
fn set_aside(folder: &Path) -> Result<(), EnvironmentError> {
    let entries = fs::read_dir(folder).map_err(EnvironmentError::file("read", folder))?;
    let paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let is_earlier = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with(BEFORE_RESTART)
    };
    let (earlier, paths): (Vec<_>, Vec<_>) = paths.into_iter().partition(is_earlier);
    let before = folder.join(format!("{BEFORE_RESTART}{}", earlier.len() + 1));
    fs::create_dir(&before).map_err(EnvironmentError::file("create", &before))?;
    for path in paths {
        let to = before.join(path.file_name().unwrap_or_default());
        fs::rename(&path, &to).map_err(EnvironmentError::file("move", &path))?;
    }
    Ok(())
}

/// Removes what an earlier run left.
fn empty(folder: &Path) -> Result<(), EnvironmentError> {
    let entries = fs::read_dir(folder).map_err(EnvironmentError::file("read", folder))?;
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(EnvironmentError::file("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn punched_log_keeps_its_length_and_newest_part() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(VMM_LOG);
        let line = |n: u64| format!("{n:09} {}\n", "x".repeat(1013));
        let text: String = (0..3 * LOG_BYTES / 1024).map(line).collect();
        fs::write(&path, &text).unwrap();
        let mut tail =
            Tail { source: "vmm", path: path.clone(), read: text.len() as u64, punched: 0 };
        tail.punch().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), text.len() as u64);
        assert_eq!(tail.since(), "");
        tail.close_up().unwrap();
        let kept = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with(&kept) && kept.starts_with("0000"), "{}", &kept[..20]);
        assert!((LOG_BYTES - 1024..2 * LOG_BYTES).contains(&(kept.len() as u64)), "{}", kept.len());
        assert_eq!((tail.read, tail.since()), (kept.len() as u64, String::new()));
    }
}

//! ELF files that cannot run as a VMM on this machine.

/// Returns an ELF header for a foreign architecture.
pub fn foreign() -> Vec<u8> {
    const EM_S390: u8 = 22;
    let mut header = vec![0; 64];
    // ELF, 64 bit, big-endian, version 1; an executable.
    header[..7].copy_from_slice(b"\x7fELF\x02\x02\x01");
    (header[17], header[19], header[23]) = (2, EM_S390, 1);
    header
}

/// Returns a complete i386 program that exits with status 0. A kernel without 32-bit support does
/// not execute it.
pub fn i386() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    // mov eax, 1 (exit); xor ebx, ebx; int 0x80
    const CODE: &[u8] = b"\xb8\x01\x00\x00\x00\x31\xdb\xcd\x80";
    let size = HEADERS + CODE.len() as u32;
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, values: &[u16]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    let word = |file: &mut Vec<u8>, values: &[u32]| {
        values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    // ET_EXEC, EM_386; version, entry, program headers, section headers, flags.
    half(&mut file, &[2, 3]);
    word(&mut file, &[1, BASE + HEADERS, 52, 0, 0]);
    // Sizes and numbers of headers.
    half(&mut file, &[52, 32, 1, 0, 0, 0]);
    // PT_LOAD: offset, addresses, sizes, readable and executable, alignment.
    word(&mut file, &[1, 0, BASE, BASE, size, size, 5, 0x1000]);
    file.extend(CODE);
    file
}

/// Returns the first half of what the kernel maps of a 64-bit `file`: less than half of the file if
/// it has debug information.
pub fn half(file: &[u8]) -> &[u8] {
    let loaded = loaded_bytes(file).filter(|loaded| *loaded <= file.len());
    &file[..loaded.unwrap_or(file.len()) / 2]
}

/// Returns the end of the last PT_LOAD segment.
fn loaded_bytes(file: &[u8]) -> Option<usize> {
    const PT_LOAD: u64 = 1;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let bytes = file.get(at..at.checked_add(bytes)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let (headers, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let segment = |index: u64| -> Option<u64> {
        let at = usize::try_from(headers.checked_add(index * size)?).ok()?;
        let loaded = number(at, 4)? == PT_LOAD;
        Some(if loaded { number(at + 8, 8)?.checked_add(number(at + 32, 8)?)? } else { 0 })
    };
    let ends: Option<Vec<u64>> = (0..count).map(segment).collect();
    ends?.into_iter().max().and_then(|end| usize::try_from(end).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_program_does_not_run() {
        let own = std::fs::read(crate::carry::own_binary().unwrap()).unwrap();
        assert!(loaded_bytes(&own).is_some_and(|loaded| loaded <= own.len()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("half");
        crate::process::program::write(&path, half(&own)).unwrap();
        let ended = std::process::Command::new(&path).arg("--help").output();
        assert!(ended.is_err() || ended.is_ok_and(|output| !output.status.success()));
    }

    #[test]
    fn i386_program_is_well_formed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("i386");
        crate::process::program::write(&path, &i386()).unwrap();
        match std::process::Command::new(&path).status() {
            Ok(status) => assert_eq!(status.code(), Some(0), "{status}"),
            // This kernel does not run 32-bit programs.
            Err(e) => assert_eq!(e.raw_os_error(), Some(libc::ENOEXEC), "{e}"),
        }
    }
}

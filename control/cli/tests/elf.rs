//! The binary is static: it runs in an image made of nothing else, and calls no system resolver.
#![cfg(all(target_os = "linux", target_pointer_width = "64", target_endian = "little"))]

/// Program header types (elf(5)).
const PT_DYNAMIC_LIBRARIES: u32 = 2;
const PT_INTERP: u32 = 3;
/// Dynamic section tag: the name of a needed library.
const DT_NEEDED: u64 = 1;

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn half(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
}

#[test]
fn it_names_no_interpreter_and_no_library() {
    let elf = std::fs::read(env!("CARGO_BIN_EXE_weft")).unwrap();
    assert_eq!(&elf[..4], b"\x7fELF");
    let (table, size, count) = (word(&elf, 32) as usize, half(&elf, 54), half(&elf, 56));
    assert!(count > 0);
    for header in (0..count).map(|nth| &elf[table + nth * size..][..size]) {
        match u32::from_le_bytes(header[..4].try_into().unwrap()) {
            PT_INTERP => panic!("the binary needs a dynamic loader: is `+crt-static` gone from .cargo/config.toml?"),
            PT_DYNAMIC_LIBRARIES => {
                let (offset, length) = (word(header, 8) as usize, word(header, 32) as usize);
                let entries = elf[offset..offset + length].chunks_exact(16);
                assert!(entries.into_iter().all(|entry| word(entry, 0) != DT_NEEDED), "the binary needs a library");
            }
            _ => {}
        }
    }
}

//! Which devices a privileged guest may use. (An unprivileged one can make no nodes, and sees only those
//! bound into it; its cgroup stays open as in LXD.)
//!
//! v1 has lists, v2 a BPF program on the directory. The program is written here instruction by instruction:
//! one block per rule, deny at the end.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::GuestCgroup;
use super::limits::Version;
use crate::error::{AtStage, Fault, FaultCode, Result};
use crate::spec::{DeviceNode, NodeKind};
use crate::sys;

const MKNOD: u8 = 1;
const READ: u8 = 2;
const WRITE: u8 = 4;

/// Allows `access` to the nodes that match; `None` matches all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    kind: NodeKind,
    major: Option<u32>,
    minor: Option<u32>,
    access: u8,
}

/// What every privileged guest may use, and the devices it is given.
pub(crate) fn rules(devices: &[DeviceNode]) -> Vec<Rule> {
    let all = MKNOD | READ | WRITE;
    let char_rule = |major, minor| Rule {
        kind: NodeKind::Char,
        major: Some(major),
        minor,
        access: all,
    };
    let mut rules = vec![
        // Making any node is harmless while it cannot be opened.
        Rule {
            kind: NodeKind::Block,
            major: None,
            minor: None,
            access: MKNOD,
        },
        Rule {
            kind: NodeKind::Char,
            major: None,
            minor: None,
            access: MKNOD,
        },
        char_rule(136, None),
    ];
    let memory = [3, 5, 7, 8, 9].map(|minor| char_rule(1, Some(minor)));
    let terminals = [0, 1, 2].map(|minor| char_rule(5, Some(minor)));
    let fuse_and_tun = [229, 200].map(|minor| char_rule(10, Some(minor)));
    rules.extend(memory.into_iter().chain(terminals).chain(fuse_and_tun));
    rules.extend(devices.iter().map(|d| Rule {
        kind: d.kind,
        major: Some(d.major),
        minor: Some(d.minor),
        access: all,
    }));
    rules
}

impl GuestCgroup {
    /// Puts the rules in force. On v2 the program of an earlier call is replaced; keep what is returned for that.
    pub(crate) fn allow_devices(
        &self,
        rules: &[Rule],
        earlier: Option<&OwnedFd>,
    ) -> Result<Option<OwnedFd>> {
        if let Some((dir, Version::V1)) = self.find("devices") {
            sys::write_at(&dir.fd, "devices.deny", "a").at("devices", "writing devices.deny")?;
            for rule in rules {
                sys::write_at(&dir.fd, "devices.allow", &line(rule))
                    .at("devices", format!("allowing {rule:?}"))?;
            }
            return Ok(None);
        }
        let Some(dir) = self.v2() else {
            return Err(Fault::new(
                "devices",
                FaultCode::Unsupported,
                "the host has neither a devices controller nor cgroup2",
            ));
        };
        let program = load(&assemble(rules)).at("devices", "loading the device program")?;
        attach(dir.as_raw_fd(), &program, earlier).at("devices", "attaching the device program")?;
        Ok(Some(program))
    }
}

/// As `devices.allow` takes it.
fn line(rule: &Rule) -> String {
    let number = |n: Option<u32>| n.map_or("*".to_owned(), |n| n.to_string());
    let kind = match rule.kind {
        NodeKind::Char => 'c',
        NodeKind::Block => 'b',
    };
    let mut access = String::new();
    for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
        if rule.access & bit != 0 {
            access.push(letter);
        }
    }
    format!(
        "{kind} {}:{} {access}",
        number(rule.major),
        number(rule.minor)
    )
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND_32: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_UNLESS_EQUAL_32: u8 = 0x56;
const EXIT: u8 = 0x95;

/// Context: r1 → { access << 16 | type, major, minor }. Type 1 is block, 2 char.
fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    let op = |code, dst: u8, src: u8, offset, immediate| Instruction {
        code,
        registers: src << 4 | dst,
        offset,
        immediate,
    };
    let mut out = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE_REGISTER, 3, 2, 0, 0),
        op(AND_32, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let kind = match rule.kind {
            NodeKind::Block => 1,
            NodeKind::Char => 2,
        };
        // (register, must equal); the jump distances are known once the block is.
        let mut block = vec![
            op(JUMP_UNLESS_EQUAL_32, 2, 0, 0, kind),
            op(MOVE_REGISTER, 6, 3, 0, 0),
            op(AND_32, 6, 0, 0, !i32::from(rule.access)),
            op(JUMP_UNLESS_EQUAL_32, 6, 0, 0, 0),
        ];
        for (register, number) in [(4, rule.major), (5, rule.minor)] {
            if let Some(number) = number {
                block.push(op(JUMP_UNLESS_EQUAL_32, register, 0, 0, number as i32));
            }
        }
        block.push(op(MOVE, 0, 0, 0, 1));
        block.push(op(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (i, instruction) in block.iter_mut().enumerate() {
            if instruction.code == JUMP_UNLESS_EQUAL_32 {
                instruction.offset = (length - i - 1) as i16;
            }
        }
        out.extend(block);
    }
    out.push(op(MOVE, 0, 0, 0, 0));
    out.push(op(EXIT, 0, 0, 0, 0));
    out
}

fn bpf<T>(command: i32, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes are the leading part of union bpf_attr for the command and live over the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    sys::check(done as i32)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    const PROG_LOAD: i32 = 5;
    const CGROUP_DEVICE: u32 = 15;
    let attributes = Load {
        kind: CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    sys::own(bpf(PROG_LOAD, &attributes)?)
}

/// The old program stays in force until the new one is.
fn attach(dir: i32, program: &OwnedFd, earlier: Option<&OwnedFd>) -> io::Result<()> {
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
        replace: u32,
    }
    const PROG_ATTACH: i32 = 8;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;
    const REPLACE: u32 = 4;
    let attributes = Attach {
        target: dir as u32,
        program: program.as_raw_fd() as u32,
        kind: CGROUP_DEVICE,
        flags: if earlier.is_some() {
            ALLOW_MULTI | REPLACE
        } else {
            ALLOW_MULTI
        },
        replace: earlier.map_or(0, |fd| fd.as_raw_fd() as u32),
    };
    bpf(PROG_ATTACH, &attributes).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the few instructions `assemble` uses.
    fn allowed(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut r = [0u64; 11];
        let mut pc = 0;
        loop {
            let i = program[pc];
            let (dst, src) = ((i.registers & 15) as usize, (i.registers >> 4) as usize);
            match i.code {
                LOAD_WORD => r[dst] = context[i.offset as usize / 4].into(),
                MOVE => r[dst] = i.immediate as u64,
                MOVE_REGISTER => r[dst] = r[src],
                AND_32 => r[dst] = u64::from(r[dst] as u32 & i.immediate as u32),
                SHIFT_RIGHT => r[dst] >>= i.immediate,
                JUMP_UNLESS_EQUAL_32 => {
                    if r[dst] as u32 != i.immediate as u32 {
                        pc += i.offset as usize;
                    }
                }
                EXIT => return r[0] == 1,
                other => panic!("unknown code {other:#x}"),
            }
            pc += 1;
        }
    }

    #[test]
    fn the_program_says_what_the_rules_say() {
        let disk = DeviceNode {
            name: "d".into(),
            path: "/dev/d".into(),
            kind: NodeKind::Block,
            major: 8,
            minor: 1,
            mode: 0o600,
            uid: 0,
            gid: 0,
        };
        let program = assemble(&rules(&[disk]));
        let (block, character) = (1, 2);
        let rw = u32::from(READ | WRITE);
        assert!(allowed(&program, character, rw, 1, 3));
        assert!(allowed(&program, character, rw, 136, 40));
        assert!(allowed(&program, block, rw, 8, 1));
        assert!(allowed(&program, block, MKNOD.into(), 8, 0));
        assert!(!allowed(&program, block, rw, 8, 0));
        assert!(!allowed(&program, block, rw | u32::from(MKNOD), 8, 0));
        assert!(!allowed(&program, character, rw, 1, 1));
        assert!(!allowed(&program, block, rw, 1, 3));
    }

    /// Needs root, like the tests beside the sources; the verifier is the judge.
    #[test]
    fn the_kernel_takes_the_program() {
        load(&assemble(&rules(&[]))).unwrap();
        let unreachable = [Instruction {
            code: EXIT,
            registers: 0,
            offset: 0,
            immediate: 0,
        }];
        assert!(load(&unreachable).is_err(), "r0 was never set");
    }

    #[test]
    fn v1_lines() {
        let text: Vec<String> = rules(&[]).iter().map(line).collect();
        assert!(text.contains(&"b *:* m".to_owned()));
        assert!(text.contains(&"c 136:* rwm".to_owned()));
        assert!(text.contains(&"c 1:3 rwm".to_owned()));
    }
}

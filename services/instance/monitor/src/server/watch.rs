//! A descriptor in the poller, or not.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::sys::poll::Poller;

/// Interest 0 takes the descriptor out of the poller: a registered one reports hang-ups for ever.
pub(super) struct Watched {
    fd: OwnedFd,
    token: u64,
    interest: u32,
}

impl Watched {
    pub(super) fn new(fd: OwnedFd, token: u64) -> Watched {
        Watched {
            fd,
            token,
            interest: 0,
        }
    }

    pub(super) fn watch(&mut self, poller: &Poller, interest: u32) -> io::Result<()> {
        match (self.interest, interest) {
            (a, b) if a == b => {}
            (0, _) => poller.add(&self.fd, self.token, interest)?,
            (_, 0) => poller.remove(&self.fd)?,
            _ => poller.modify(&self.fd, self.token, interest)?,
        }
        self.interest = interest;
        Ok(())
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a token means: kind in the top byte, number below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Listener,
    Signals,
    Conn(u64),
    ExecStatus(u64),
    ExecStdin(u64),
    ExecStdout(u64),
    ExecStderr(u64),
    Console,
    Freeze,
}

const NUMBER: u64 = (1 << 56) - 1;

impl Token {
    pub(super) fn raw(self) -> u64 {
        let (kind, number) = match self {
            Token::Listener => (1, 0),
            Token::Signals => (2, 0),
            Token::Conn(n) => (3, n),
            Token::ExecStatus(n) => (4, n),
            Token::ExecStdin(n) => (5, n),
            Token::ExecStdout(n) => (6, n),
            Token::ExecStderr(n) => (7, n),
            Token::Console => (8, 0),
            Token::Freeze => (9, 0),
        };
        kind << 56 | (number & NUMBER)
    }

    pub(super) fn parse(raw: u64) -> Option<Token> {
        let number = raw & NUMBER;
        Some(match raw >> 56 {
            1 => Token::Listener,
            2 => Token::Signals,
            3 => Token::Conn(number),
            4 => Token::ExecStatus(number),
            5 => Token::ExecStdin(number),
            6 => Token::ExecStdout(number),
            7 => Token::ExecStderr(number),
            8 => Token::Console,
            9 => Token::Freeze,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Token;

    #[test]
    fn tokens_survive() {
        for token in [
            Token::Listener,
            Token::Conn(7),
            Token::ExecStderr(1 << 50),
            Token::Freeze,
        ] {
            assert_eq!(Token::parse(token.raw()), Some(token));
        }
        assert_eq!(Token::parse(0), None);
    }
}

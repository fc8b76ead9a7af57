//! The encoding of the few nfnetlink messages that capture needs, and the transaction that carries them to the kernel.
//!
//! A [`Batch`] is a list of named steps between a begin and an end message; the kernel applies all of them or none. Only the last
//! step asks for an acknowledgement, but every step that fails answers with its number, so that an error names the step.
//! Layout: `linux/netfilter/nfnetlink.h` and `nf_tables.h`. Integers in attributes are big-endian, values to compare with are
//! in the order in which the kernel loads them (ports and addresses as on the wire, marks and uids as on the host).

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Rules that hold for IPv4 and IPv6.
    Inet = 1,
    /// Rules for IPv4 alone: a kernel that was built without IPv6 has no other.
    Ipv4 = 2,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ipv4 => "ip",
        }
    }
}

/// Register 1: sixteen bytes, room for an IPv6 address.
const REGISTER: u32 = 1;
/// The register whose content is a verdict.
const VERDICT_REGISTER: u32 = 0;
/// Largest batch that is sent, in bytes: within the send buffer that an unprivileged socket gets (212,992 unless somebody changed it).
pub const MAX_BATCH: usize = 160_000;

/// Why the kernel's rules could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket could be used at all.
    #[error("netlink: {operation} failed: {source}; the kernel needs CONFIG_NF_TABLES")]
    Socket {
        /// The system call.
        operation: &'static str,
        /// What it said.
        source: Errno,
    },
    /// The kernel refused one step; nothing was changed.
    #[error("network rules: {step}: {source}{}; nothing was changed", hint(*source))]
    Refused {
        /// The step of the transaction that failed.
        step: String,
        /// The kernel's reason.
        source: Errno,
    },
    /// The kernel answered with something else than an acknowledgement.
    #[error(
        "network rules: the kernel's answer could not be read ({0}); look at `nft list ruleset` before trying again"
    )]
    Answer(&'static str),
    /// More rules than fit into one transaction.
    #[error(
        "network rules: {size} bytes of rules, at most {MAX_BATCH} fit into one transaction: list fewer ports and ranges"
    )]
    TooLarge {
        /// Bytes encoded.
        size: usize,
    },
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => " (this needs CAP_NET_ADMIN in the network namespace)",
        Errno::NOENT | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT => {
            " (the kernel may lack nf_tables, nft_chain_nat or nft_redir; Linux 5.2 or later has NAT for family inet)"
        }
        _ => "",
    }
}

/// What a rule looks at in a packet or its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// `SO_PRIORITY` of the socket.
    Priority = 2,
    /// `SO_MARK` of the socket.
    Mark = 3,
    /// Name of the interface that it came by.
    InputName = 6,
    /// Name of the interface that it leaves by.
    OutputName = 7,
    /// Uid of the socket's owner.
    SocketUid = 10,
    /// IPv4 (2) or IPv6 (10).
    Family = 15,
    /// TCP is 6.
    Protocol = 16,
}

/// Where a payload offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The IP header.
    Network = 1,
    /// The TCP header.
    Transport = 2,
}

/// What becomes of a packet that a rule matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Back to the calling chain, or out of these rules.
    Return,
    /// On in another chain of the same table, without coming back.
    Goto(&'static str),
}

/// One expression of a rule: loads the register, tests it, or acts. A failed test ends the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Load what is known about the packet.
    Meta(Meta),
    /// Load bytes of the packet: base, offset and length.
    Payload(Base, u32, u32),
    /// Keep only the bits of this mask.
    Mask(Vec<u8>),
    /// Go on only if the register holds these bytes.
    Equal(Vec<u8>),
    /// Go on only if it does not.
    NotEqual(Vec<u8>),
    /// Decide.
    Verdict(Verdict),
    /// Send the connection to this port of this host.
    Redirect(u16),
}

/// Where a base chain stands in a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// What comes in, before routing.
    Prerouting = 0,
    /// What processes here send.
    Output = 3,
}

/// Attributes under construction: type, length, value, padded to four bytes.
#[derive(Default)]
struct Attrs(Vec<u8>);

impl Attrs {
    const NESTED: u16 = 0x8000;

    fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = 4 + value.len();
        self.0.extend_from_slice(&(length as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    fn nested(self, kind: u16, inner: Attrs) -> Self {
        self.bytes(kind | Self::NESTED, &inner.0)
    }
}

impl Error {
    /// Whether the kernel does not know this family of tables.
    pub fn no_such_family(&self) -> bool {
        matches!(self, Self::Refused { source: Errno::OPNOTSUPP | Errno::AFNOSUPPORT, .. })
    }
}

impl Expr {
    /// Name and attributes of the kernel's expressions that make this one. A redirect is two: load the port, then act.
    fn parts(&self) -> Vec<(&'static str, Attrs)> {
        let value = |bytes: &[u8]| Attrs::default().bytes(1, bytes);
        let compare = |operator: u32, bytes: &[u8]| {
            ("cmp", Attrs::default().number(1, REGISTER).number(2, operator).nested(3, value(bytes)))
        };
        match self {
            Self::Meta(key) => vec![("meta", Attrs::default().number(2, *key as u32).number(1, REGISTER))],
            Self::Payload(base, offset, length) => {
                let attrs = Attrs::default().number(1, REGISTER).number(2, *base as u32).number(3, *offset);
                vec![("payload", attrs.number(4, *length))]
            }
            Self::Mask(mask) => {
                let attrs = Attrs::default().number(1, REGISTER).number(2, REGISTER).number(3, mask.len() as u32);
                vec![("bitwise", attrs.nested(4, value(mask)).nested(5, value(&vec![0; mask.len()])))]
            }
            Self::Equal(bytes) => vec![compare(0, bytes)],
            Self::NotEqual(bytes) => vec![compare(1, bytes)],
            Self::Verdict(verdict) => {
                let (code, chain) = match verdict {
                    Verdict::Return => (-5_i32, None),
                    Verdict::Goto(chain) => (-4_i32, Some(chain)),
                };
                let mut attrs = Attrs::default().bytes(1, &code.to_be_bytes());
                if let Some(chain) = chain {
                    attrs = attrs.text(2, chain);
                }
                let data = Attrs::default().nested(2, attrs);
                vec![("immediate", Attrs::default().number(1, VERDICT_REGISTER).nested(2, data))]
            }
            Self::Redirect(port) => vec![
                ("immediate", Attrs::default().number(1, REGISTER).nested(2, value(&port.to_be_bytes()))),
                ("redir", Attrs::default().number(1, REGISTER)),
            ],
        }
    }
}

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// `NLMSG_ERROR`: an answer that is an errno, or 0 for an acknowledgement.
const ANSWER: u16 = 2;
/// Length of a netlink header (16) and of the nfnetlink header behind it (4).
const HEADERS: usize = 20;

/// Changes that happen together or not at all.
pub struct Batch {
    family: Family,
    /// What is done and the message for it: type, flags and attributes. The place in this list, from 1, is its sequence number.
    steps: Vec<(String, u16, u16, Vec<u8>)>,
}

impl Batch {
    /// An empty transaction on tables of this family.
    pub fn new(family: Family) -> Self {
        Self { family, steps: Vec::new() }
    }

    fn push(&mut self, step: String, kind: u16, flags: u16, attrs: Attrs) {
        self.steps.push((step, SUBSYSTEM << 8 | kind, REQUEST | flags, attrs.0));
    }

    /// Makes the table unless it exists.
    pub fn add_table(&mut self, table: &str) {
        let attrs = Attrs::default().text(1, table).number(2, 0);
        self.push(format!("add table {} {table}", self.family.name()), NEW_TABLE, CREATE, attrs);
    }

    /// Deletes the table and all that is in it; it must exist.
    pub fn delete_table(&mut self, table: &str) {
        let step = format!("delete table {} {table}", self.family.name());
        self.push(step, DEL_TABLE, 0, Attrs::default().text(1, table));
    }

    /// Adds a chain that others go to.
    pub fn add_chain(&mut self, table: &str, chain: &str) {
        let attrs = Attrs::default().text(1, table).text(3, chain);
        self.push(format!("add chain {} {table} {chain}", self.family.name()), NEW_CHAIN, CREATE, attrs);
    }

    /// Adds a base chain of type `nat` at the usual place for destination NAT (priority -100).
    pub fn add_nat_chain(&mut self, table: &str, chain: &str, hook: Hook) {
        const DESTINATION_NAT: i32 = -100;
        let place = Attrs::default().number(1, hook as u32).bytes(2, &DESTINATION_NAT.to_be_bytes());
        let attrs = Attrs::default().text(1, table).text(3, chain).nested(4, place).text(7, "nat");
        self.push(format!("add nat chain {} {table} {chain}", self.family.name()), NEW_CHAIN, CREATE, attrs);
    }

    /// Appends a rule; the comment is kept by the kernel and shown by `nft list ruleset`.
    pub fn add_rule(&mut self, table: &str, chain: &str, comment: &str, exprs: &[Expr]) {
        let mut list = Attrs::default();
        for (name, attrs) in exprs.iter().flat_map(Expr::parts) {
            list = list.nested(1, Attrs::default().text(1, name).nested(2, attrs));
        }
        // User data as libnftnl writes it: type 0 is a comment, one byte of length, the text with its zero byte.
        let mut data = vec![0, comment.len() as u8 + 1];
        data.extend_from_slice(comment.as_bytes());
        data.push(0);
        let attrs = Attrs::default().text(1, table).text(2, chain).nested(4, list).bytes(7, &data);
        let step = format!("add rule {} {table} {chain} ({comment})", self.family.name());
        self.push(step, NEW_RULE, CREATE | APPEND, attrs);
    }

    /// Bytes that go to the kernel.
    #[cfg(test)]
    pub(crate) fn size(&self) -> usize {
        self.encode().len()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = message(BATCH_BEGIN, REQUEST, 0, (0, SUBSYSTEM), &[]);
        for (index, (_, kind, flags, attrs)) in self.steps.iter().enumerate() {
            let last = if index + 1 == self.steps.len() { ACK } else { 0 };
            out.extend(message(*kind, flags | last, index as u32 + 1, (self.family as u8, 0), attrs));
        }
        out.extend(message(BATCH_END, REQUEST, self.steps.len() as u32 + 1, (0, SUBSYSTEM), &[]));
        out
    }

    /// Hands the transaction to the kernel, in the calling thread's network namespace.
    ///
    /// # Errors
    /// The first step that the kernel refused; then nothing was changed.
    pub fn commit(&self) -> Result<(), Error> {
        let batch = self.encode();
        if batch.len() > MAX_BATCH {
            return Err(Error::TooLarge { size: batch.len() });
        }
        let socket = open()?;
        send(&socket, &batch)?;
        let mut done = false;
        // Netlink is synchronous: all answers are there when the send returns.
        for answer in answers(&socket)? {
            if answer.errno != 0 {
                let step = match answer.sequence.checked_sub(1).and_then(|index| self.steps.get(index as usize)) {
                    Some((step, ..)) => step.clone(),
                    None => "the transaction as a whole".to_owned(),
                };
                return Err(Error::Refused { step, source: Errno::from_raw_os_error(answer.errno) });
            }
            done |= answer.sequence as usize == self.steps.len();
        }
        if done { Ok(()) } else { Err(Error::Answer("no acknowledgement")) }
    }
}

/// Whether the table exists in the calling thread's network namespace.
///
/// # Errors
/// If netlink cannot be used, or not by this user.
pub fn table_exists(family: Family, table: &str) -> Result<bool, Error> {
    let socket = open()?;
    let attrs = Attrs::default().text(1, table);
    send(&socket, &message(SUBSYSTEM << 8 | GET_TABLE, REQUEST | ACK, 1, (family as u8, 0), &attrs.0))?;
    let errno = answers(&socket)?.iter().map(|answer| answer.errno).find(|errno| *errno != 0);
    match errno.map(Errno::from_raw_os_error) {
        None => Ok(true),
        Some(Errno::NOENT) => Ok(false),
        Some(source) => Err(Error::Refused { step: format!("look for table {} {table}", family.name()), source }),
    }
}

/// One netlink message with the nfnetlink header: family and resource id.
fn message(kind: u16, flags: u16, sequence: u32, (family, resource): (u8, u16), attrs: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADERS + attrs.len());
    out.extend_from_slice(&((HEADERS + attrs.len()) as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    out.extend_from_slice(attrs);
    out
}

fn failed(operation: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Socket { operation, source }
}

fn open() -> Result<OwnedFd, Error> {
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER))
            .map_err(failed("socket"))?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0)).map_err(failed("bind"))?;
    Ok(socket)
}

fn send(socket: &OwnedFd, message: &[u8]) -> Result<(), Error> {
    let kernel = SocketAddrNetlink::new(0, 0);
    let sent = rustix::net::sendto(socket, message, SendFlags::empty(), &kernel).map_err(failed("send"))?;
    if sent == message.len() { Ok(()) } else { Err(Error::Answer("the transaction was cut short")) }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Answer {
    sequence: u32,
    /// 0 for an acknowledgement.
    errno: i32,
}

fn answers(socket: &OwnedFd) -> Result<Vec<Answer>, Error> {
    let mut found = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((read, _)) => parse_answers(buffer.get(..read).unwrap_or_default(), &mut found)?,
            Err(Errno::AGAIN) => return Ok(found),
            Err(Errno::INTR) => {}
            Err(source) => return Err(Error::Socket { operation: "receive", source }),
        }
    }
}

/// Picks the errors and acknowledgements out of a datagram; other messages are passed over.
fn parse_answers(mut datagram: &[u8], found: &mut Vec<Answer>) -> Result<(), Error> {
    let word = |bytes: &[u8], at: usize| -> Option<u32> {
        bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)
    };
    while !datagram.is_empty() {
        let length = word(datagram, 0).ok_or(Error::Answer("short header"))? as usize;
        let kind = (word(datagram, 4).ok_or(Error::Answer("short header"))? & 0xffff).to_ne_bytes();
        let sequence = word(datagram, 8).ok_or(Error::Answer("short header"))?;
        if length < 16 || length > datagram.len() {
            return Err(Error::Answer("a length that cannot be"));
        }
        if u32::from_ne_bytes(kind) == u32::from(ANSWER) {
            let errno = word(datagram, 16).ok_or(Error::Answer("an error without number"))?;
            found.push(Answer { sequence, errno: errno.cast_signed().saturating_neg() });
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_their_length_is_not() {
        let attrs = Attrs::default().text(1, "weft").number(2, 7);
        assert_eq!(attrs.0, [9, 0, 1, 0, b'w', b'e', b'f', b't', 0, 0, 0, 0, 8, 0, 2, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn the_last_step_alone_asks_for_an_answer() {
        let mut batch = Batch::new(Family::Inet);
        batch.add_table("a");
        batch.delete_table("a");
        let bytes = batch.encode();
        let mut flags = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            assert_eq!(length % 4, 0);
            flags.push(u16::from_ne_bytes(rest[6..8].try_into().unwrap()));
            rest = &rest[length..];
        }
        assert_eq!(flags, [REQUEST, REQUEST | CREATE, REQUEST | ACK, REQUEST]);
    }

    #[test]
    fn answers_are_read_whatever_stands_between_them() {
        let mut datagram = Vec::new();
        for (kind, sequence, errno) in [(2_u16, 3_u32, 0_i32), (9, 4, -5), (2, 5, -1)] {
            datagram.extend(20_u32.to_ne_bytes());
            datagram.extend(kind.to_ne_bytes());
            datagram.extend([0, 0]);
            datagram.extend(sequence.to_ne_bytes());
            datagram.extend(0_u32.to_ne_bytes());
            datagram.extend(errno.to_ne_bytes());
        }
        let mut found = Vec::new();
        parse_answers(&datagram, &mut found).unwrap();
        assert_eq!(found, [Answer { sequence: 3, errno: 0 }, Answer { sequence: 5, errno: 1 }]);
        assert!(parse_answers(&datagram[..30], &mut found).is_err());
    }
}

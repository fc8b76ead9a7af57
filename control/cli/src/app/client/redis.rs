//! SET and GET in RESP2 over a kept connection: what any Redis client sends.

use std::fmt::Write as _;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::Answer;
use super::tally::Fate;

/// The longest line of an answer that is read.
const MAX_LINE: u64 = 4096;

/// One connection's worth of commands.
pub struct Speaker {
    to: SocketAddr,
    key: String,
    turn: u64,
    connection: Option<BufReader<TcpStream>>,
}

impl Speaker {
    /// Connects at the first call; `index` makes its key its own.
    pub fn new(to: SocketAddr, index: u32) -> Self {
        Self { to, key: format!("weft-demo-{index}"), turn: 0, connection: None }
    }

    /// Writes a value and reads it back.
    pub async fn call(&mut self) -> Result<Answer, String> {
        let at = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        let mut connection = match self.connection.take() {
            Some(kept) => kept,
            None => {
                let stream = TcpStream::connect(self.to).await.map_err(at("connect"))?;
                let _ = stream.set_nodelay(true);
                BufReader::new(stream)
            }
        };
        self.turn += 1;
        let value = self.turn.to_string();
        let commands = [command(&["SET", &self.key, &value]), command(&["GET", &self.key])].concat();
        connection.write_all(commands.as_bytes()).await.map_err(at("send"))?;
        for want in ["+OK".to_owned(), format!("${}", value.len()), value] {
            let got = line(&mut connection).await.map_err(at("answer"))?;
            if got != want {
                return Err(format!("answer: got `{got}`, not `{want}`"));
            }
        }
        self.connection = Some(connection);
        Ok(Answer { fate: Fate::Ok, version: None, seen: None })
    }
}

fn command(words: &[&str]) -> String {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        let _ = write!(text, "${}\r\n{word}\r\n", word.len());
    }
    text
}

async fn line(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut text = String::new();
    stream.take(MAX_LINE).read_line(&mut text).await?;
    match text.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "closed before the line's end")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        assert_eq!(command(&["GET", "ab"]), "*2\r\n$3\r\nGET\r\n$2\r\nab\r\n");
    }
}

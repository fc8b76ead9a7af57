//! One TCP connection an operation: the server speaks first, then a line goes there and back.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::Answer;
use super::tally::Fate;

/// The longest line that is read.
const MAX_LINE: u64 = 4096;

/// Holds nothing between operations.
pub struct Speaker {
    to: SocketAddr,
}

impl Speaker {
    /// For a server that greets and echoes.
    pub fn new(to: SocketAddr) -> Self {
        Self { to }
    }

    /// Connects, reads `hello NAME VERSION`, sends a line, reads its echo, closes.
    pub async fn call(&mut self) -> Result<Answer, String> {
        let at = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        let stream = TcpStream::connect(self.to).await.map_err(at("connect"))?;
        let _ = stream.set_nodelay(true);
        let mut stream = BufReader::new(stream);
        let greeting = line(&mut stream).await.map_err(at("greeting"))?;
        let version = greeting
            .strip_prefix("hello ")
            .and_then(|rest| rest.rsplit(' ').next())
            .ok_or_else(|| format!("greeting: got `{greeting}`"))?
            .to_owned();
        stream.write_all(b"how many are left?\n").await.map_err(at("send"))?;
        let echo = line(&mut stream).await.map_err(at("echo"))?;
        if echo != "how many are left?" {
            return Err(format!("echo: got `{echo}`"));
        }
        Ok(Answer { fate: Fate::Ok, version: Some(version), seen: None })
    }
}

async fn line(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut text = String::new();
    stream.take(MAX_LINE).read_line(&mut text).await?;
    match text.strip_suffix('\n') {
        Some(line) => Ok(line.to_owned()),
        None => Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "closed before the line's end")),
    }
}

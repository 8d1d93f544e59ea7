//! The least HTTP client there can be: what goes over the wire is what a test says, and nothing is retried or mended.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A whole response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The events' data of a stream, without its closing `[DONE]`, which must be there.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.body);
        assert_eq!(self.header("content-type"), Some("text/event-stream"));
        let mut data = self.data();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    /// The events' data.
    pub(crate) fn data(&self) -> Vec<&str> {
        let events = self.body.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
        events.map(|event| event.strip_prefix("data: ").expect("an event is one line of data")).collect()
    }
}

/// Sends a request with these further headers, each ended by a line end, and reads the response to its end.
pub(crate) async fn send(address: SocketAddr, line: &str, headers: &str, body: &str) -> Response {
    let mut connection = open(address, line, headers, body).await;
    let mut bytes = Vec::new();
    connection.read_to_end(&mut bytes).await.unwrap();
    parse(&bytes)
}

/// Sends a request and leaves its response unread.
pub(crate) async fn open(address: SocketAddr, line: &str, headers: &str, body: &str) -> TcpStream {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    connection.write_all(head.as_bytes()).await.unwrap();
    // A server that refuses by the head alone need not read the body.
    connection.write_all(body.as_bytes()).await.ok();
    connection
}

/// The header of requests with a body.
pub(crate) const JSON: &str = "content-type: application/json\r\n";

pub(crate) async fn get(address: SocketAddr, path: &str) -> Response {
    send(address, &format!("GET {path}"), "", "").await
}

pub(crate) async fn post(address: SocketAddr, path: &str, body: &Value) -> Response {
    post_text(address, path, &body.to_string()).await
}

pub(crate) async fn post_text(address: SocketAddr, path: &str, body: &str) -> Response {
    send(address, &format!("POST {path}"), JSON, body).await
}

/// Begins a request whose response is a stream, and reads until its first event is there.
pub(crate) async fn begin(address: SocketAddr, path: &str, body: &Value) -> TcpStream {
    let mut connection = open(address, &format!("POST {path}"), JSON, &body.to_string()).await;
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains("data: ") {
        let length = connection.read(&mut buffer).await.unwrap();
        assert!(0 < length, "the stream ended before its first event: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    connection
}

fn parse(bytes: &[u8]) -> Response {
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a response has a head");
    let head = std::str::from_utf8(&bytes[..split]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
    let headers: Vec<_> = lines.filter_map(header).collect();
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let rest = &bytes[split + 4..];
    let body = if chunked { unchunked(rest) } else { rest.to_vec() };
    Response { status, headers, body: String::from_utf8(body).expect("every body is text") }
}

/// A chunked body's content; each chunk is its length in hexadecimal, a line end, its bytes, a line end.
fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n").expect("a chunk has a length");
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + length]);
        rest = &rest[end + 2 + length + 2..];
    }
}

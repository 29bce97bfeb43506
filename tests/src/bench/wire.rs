//! A connection that costs as little as a client can: messages are built before they are timed,
//! answers are read in place, and there is no thread or event loop in between.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{bail, ensure, Context, Result};
use bytes::{BufMut, BytesMut};
use postgres_protocol::message::backend::{self, Header};
use postgres_protocol::message::frontend;
use postgres_protocol::IsNull;

use crate::cluster::SUPERUSER;

/// The name of the statement a [`Request`] executes.
const STATEMENT: &str = "measured";

/// A connection.
pub struct Connection {
    stream: UnixStream,
    backend: i32,
    /// What has been received, from `start` on not yet looked at.
    input: Vec<u8>,
    start: usize,
    end: usize,
}

/// The messages that execute the prepared statement once.
#[derive(Clone, Debug)]
pub struct Request(Vec<u8>);

impl Request {
    /// Executes with these parameters, in binary form; the result is asked for in binary form.
    ///
    /// # Errors
    /// A parameter is too long.
    pub fn new(parameters: &[&[u8]]) -> Result<Request> {
        let mut out = BytesMut::new();
        let serialize = |value: &[u8], out: &mut BytesMut| {
            out.put_slice(value);
            Ok(IsNull::No)
        };
        frontend::bind("", STATEMENT, [1], parameters.iter().copied(), serialize, [1], &mut out)
            .map_err(|_| anyhow::anyhow!("parameters that cannot be sent"))?;
        frontend::execute("", 0, &mut out)?;
        frontend::sync(&mut out);
        Ok(Request(out.to_vec()))
    }
}

impl Connection {
    /// Connects to a server that asks for no password.
    ///
    /// # Errors
    /// The server refuses.
    pub fn open(socket_dir: &Path, database: &str) -> Result<Connection> {
        let socket = socket_dir.join(".s.PGSQL.5432");
        let stream = UnixStream::connect(&socket)
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        let input = vec![0; 1 << 16];
        let mut connection = Connection { stream, backend: 0, input, start: 0, end: 0 };
        let mut out = BytesMut::new();
        let parameters = [("user", SUPERUSER), ("database", database), ("client_encoding", "UTF8")];
        frontend::startup_message(parameters, &mut out)?;
        connection.stream.write_all(&out)?;
        let mut backend = 0;
        connection.answer(|tag, body| {
            match tag {
                // A request for a password would wait for ever.
                b'R' => ensure!(body == [0; 4], "the server asks for a password"),
                b'K' => {
                    let pid = body.first_chunk().context("a short key")?;
                    backend = i32::from_be_bytes(*pid);
                }
                _ => {}
            }
            Ok(())
        })?;
        connection.backend = backend;
        Ok(connection)
    }

    /// The process of the backend.
    pub fn backend(&self) -> i32 {
        self.backend
    }

    /// Runs statements, and returns the first column of the rows they return, as text.
    ///
    /// # Errors
    /// A statement fails.
    pub fn simple(&mut self, sql: &str) -> Result<Vec<String>> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.stream.write_all(&out)?;
        let mut rows = Vec::new();
        self.answer(|tag, body| {
            if tag == b'D' {
                let column = first_column(body).context("a row without a value")?;
                rows.push(String::from_utf8_lossy(column).into_owned());
            }
            Ok(())
        })
        .with_context(|| sql.to_owned())?;
        Ok(rows)
    }

    /// Prepares the statement that requests execute.
    ///
    /// # Errors
    /// It cannot be parsed.
    pub fn prepare(&mut self, sql: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::close(b'S', STATEMENT, &mut out)?;
        frontend::parse(STATEMENT, sql, [], &mut out)?;
        frontend::sync(&mut out);
        self.stream.write_all(&out)?;
        self.answer(|_, _| Ok(())).with_context(|| sql.to_owned())
    }

    /// Executes the prepared statement; puts the first column of its rows, integers, into `ids`.
    ///
    /// # Errors
    /// The statement fails, or its first column is no integer.
    pub fn execute(&mut self, request: &Request, ids: &mut Vec<i32>) -> Result<()> {
        ids.clear();
        self.stream.write_all(&request.0)?;
        self.answer(|tag, body| {
            if tag == b'D' {
                let column = first_column(body).and_then(|it| it.try_into().ok());
                ids.push(i32::from_be_bytes(column.context("a row without an integer")?));
            }
            Ok(())
        })
    }

    /// Reads messages until the server is ready for the next, and gives each to `see`.
    fn answer(&mut self, mut see: impl FnMut(u8, &[u8]) -> Result<()>) -> Result<()> {
        let mut outcome = Ok(());
        loop {
            let waiting = &self.input[self.start..self.end];
            let length = match Header::parse(waiting)? {
                Some(header) => usize::try_from(header.len())? + 1,
                None => 5,
            };
            let Some(message) = waiting.get(..length).filter(|it| it.len() > 4) else {
                self.receive(length)?;
                continue;
            };
            let tag = message[0];
            match tag {
                b'E' => outcome = outcome.and(Err(failure(message))),
                _ if outcome.is_ok() => outcome = see(tag, &message[5..]),
                _ => {}
            }
            self.start += length;
            if tag == b'Z' {
                return outcome;
            }
        }
    }

    /// Receives more, with room for a message of `length`.
    fn receive(&mut self, length: usize) -> Result<()> {
        self.input.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.input.len() < length {
            self.input.resize(length, 0);
        }
        let received = self.stream.read(&mut self.input[self.end..])?;
        if received == 0 {
            bail!("the server has closed the connection");
        }
        self.end += received;
        Ok(())
    }
}

/// The first column of a DataRow's body; none if it is NULL or malformed.
fn first_column(body: &[u8]) -> Option<&[u8]> {
    let (length, rest) = body.get(2..)?.split_first_chunk()?;
    rest.get(..usize::try_from(i32::from_be_bytes(*length)).ok()?)
}

/// What an ErrorResponse says.
fn failure(message: &[u8]) -> anyhow::Error {
    let mut bytes = BytesMut::from(message);
    let Ok(Some(backend::Message::ErrorResponse(body))) = backend::Message::parse(&mut bytes)
    else {
        return anyhow::anyhow!("an error that cannot be read");
    };
    let mut fields = body.fields();
    let (mut code, mut text) = (String::new(), String::new());
    while let Ok(Some(field)) = postgres::fallible_iterator::FallibleIterator::next(&mut fields) {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = value,
            b'M' => text = value,
            _ => {}
        }
    }
    anyhow::anyhow!("{text} (SQLSTATE {code})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Shutdown;
    use std::thread;

    /// A connection to a server that says `answer`, two bytes at a time.
    fn against(answer: &'static [u8]) -> Connection {
        let (stream, mut server) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let said = answer.chunks(2).try_for_each(|part| server.write_all(part));
            // What the client sends is taken until it leaves: it must not find a broken pipe.
            let _ = said.and_then(|()| server.shutdown(Shutdown::Write));
            let _ = server.read_to_end(&mut Vec::new());
        });
        Connection { stream, backend: 0, input: vec![0; 8], start: 0, end: 0 }
    }

    const READY: &[u8] = b"Z\0\0\0\x05I";

    #[test]
    fn rows_are_read_in_whatever_parts_they_come() {
        let row = b"D\0\0\0\x0e\0\x01\0\0\0\x04\0\0\0\x07";
        let bytes = [row, row, READY].concat().leak();
        let mut ids = vec![1];
        against(bytes).execute(&Request::new(&[]).unwrap(), &mut ids).unwrap();
        assert_eq!(ids, [7, 7]);
    }

    #[test]
    fn errors_carry_what_the_server_says() {
        let bytes = [b"E\0\0\0\x12C22012\0Mzero\0\0", READY].concat().leak();
        let error = against(bytes).simple("SELECT 1/0").unwrap_err();
        assert_eq!(format!("{error:#}"), "SELECT 1/0: zero (SQLSTATE 22012)");
    }

    #[test]
    fn what_is_no_integer_or_no_answer_is_an_error() {
        let null = [b"D\0\0\0\x0a\0\x01\xff\xff\xff\xff", READY].concat().leak();
        let request = Request::new(&[&[1, 2]]).unwrap();
        assert!(against(null).execute(&request, &mut Vec::new()).is_err());
        assert!(against(b"D\0\0\0\x0e\0\x01").execute(&request, &mut Vec::new()).is_err());
        assert!(against(b"D\0\0\0\x01\0\x01").execute(&request, &mut Vec::new()).is_err());
    }
}

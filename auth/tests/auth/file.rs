//! The configuration file and the key sets: what they must say, and what it means when they change or go away.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tidegate_auth::{Authenticator, Refused, mint};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::fixture::{Fixture, SECRET, claims, from, hs256, shared, until};

#[tokio::test]
async fn e48_what_is_taken_back_in_the_file_ends_what_is_open() {
    let fixture = Fixture::new();
    let (key, hash) = mint::api_key();
    let api_key = format!(
        "[[auth.api_key]]\nname = 'n'\nsha256 = '{}'\nsubject = 'ci'\nscopes = ['jobs:read', 'jobs:submit']\n",
        mint::sha256_hex(&hash)
    );
    let all = shared(&api_key);
    let auth = from(&fixture.write(&all));
    tokio::spawn(auth.clone().follow());
    let by_key = auth.bearer(&key).await.unwrap();
    let token = hs256(SECRET, &claims(json!({})));
    let by_token = auth.bearer(&token).await.unwrap();
    let stands = async |file: String, key: bool, token: bool| {
        fixture.write(&file);
        until(&file, async || {
            (auth.standing(&by_key).is_ok(), auth.standing(&by_token).is_ok()) == (key, token)
        })
        .await;
    };
    stands(all.replace(", 'jobs:submit'", ""), false, true).await;
    stands(all.clone(), true, true).await;
    stands(format!("{all}\n[[auth.revoked]]\njti = 'j1'\n"), true, false).await;
    assert_eq!(auth.bearer(&token).await.unwrap_err(), Refused::Revoked, "the cache must not know better");
    stands(format!("{all}\n[[auth.revoked]]\nsubject = 'alice'\ntenant = 'other'\n"), true, true).await;
    stands(format!("{all}\n[[auth.revoked]]\nsubject = 'ci'\n"), false, true).await;
    stands(
        format!("{all}\n[[auth.revoked]]\nsubject = 'alice'\nbefore = 2999-01-01T00:00:00Z\n"),
        true,
        false,
    )
    .await;
    stands(
        format!("{all}\n[[auth.revoked]]\nsubject = 'alice'\nbefore = 2001-01-01T00:00:00Z\n"),
        true,
        true,
    )
    .await;
    stands(shared(""), false, true).await;
    // Tokens mean something else now: what was granted by the old reading is not granted still.
    stands(all.replace("audience = 'tidegate'", "audience = ['tidegate', 'more']"), true, false).await;
    stands(all.clone(), true, true).await;
    stands(all.replace("leeway_seconds = 5", "leeway_seconds = 6\nsubject_prefix = 'x-'"), true, false).await;
    stands(all.replace("leeway_seconds = 5", "leeway_seconds = 6"), true, true).await;
    // A file with an error changes nothing, one that is whole again does.
    let log = fixture.dir.path().join("log");
    let logged = tracing_subscriber::fmt().with_writer(Arc::new(fs::File::create(&log).unwrap()));
    let logging = tracing::subscriber::set_default(logged.finish());
    fixture.write("[auth]\nnonsense = 1\n");
    until("the file was read", async || fs::read_to_string(&log).unwrap().contains("stays in force")).await;
    drop(logging);
    assert!(auth.standing(&by_token).is_ok());
    // The secret is another one.
    fs::write(fixture.dir.path().join("hs.secret"), "f".repeat(40)).unwrap();
    stands(all.clone(), true, false).await;
    // Without its section the file lets nobody in.
    stands("# nothing\n".into(), false, false).await;
    assert_eq!(auth.bearer(&key).await.unwrap_err(), Refused::UnknownApiKey);
}

/// A key server whose answer the test decides.
async fn key_server() -> (String, Arc<parking_lot::Mutex<Option<String>>>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks", listener.local_addr().unwrap());
    let (answer, asked) =
        (Arc::<parking_lot::Mutex<Option<String>>>::default(), Arc::<AtomicUsize>::default());
    let (to_send, count) = (answer.clone(), asked.clone());
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && socket.read_buf(&mut head).await.unwrap_or(0) > 0 {}
            count.fetch_add(1, Ordering::SeqCst);
            let body = to_send.lock().clone();
            let text = match body {
                Some(body) => format!(
                    "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                ),
                None => "HTTP/1.1 500 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".to_owned(),
            };
            let _ = socket.write_all(text.as_bytes()).await;
        }
    });
    (url, answer, asked)
}

#[tokio::test]
async fn e49_key_sets_rotate_and_the_last_good_one_survives_an_outage() {
    let fixture = Fixture::new();
    let (url, answer, asked) = key_server().await;
    let file = format!(
        "[auth]\nreload_seconds = 1\n[[auth.issuer]]\nissuer = 'https://idp.example'\naudience = 'tidegate'\n\
         algorithms = ['ES256', 'EdDSA']\njwks = '{url}'\nrefresh_seconds = 1\n"
    );
    let auth = from(&fixture.write(&file));
    let ec = fixture.es256(json!({"alg": "ES256", "kid": "ec"}), &claims(json!({})));
    let ed = fixture.eddsa(json!({"alg": "EdDSA", "kid": "ed"}), &claims(json!({})));
    // Never read: nothing can be said, which is not the same as "wrong".
    assert_eq!(auth.bearer(&ec).await.unwrap_err(), Refused::Unavailable);
    // Unknown keys ask at most once in ten seconds, whoever presents how many.
    for _ in 0..50 {
        let _ = auth.bearer(&ec).await;
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    let auth = from(&fixture.write(&file));
    *answer.lock() = Some(fixture.jwks(&["ec"]).to_string());
    let first = auth.bearer(&ec).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 2, "the first token had the keys fetched");
    tokio::spawn(auth.clone().follow());
    assert_eq!(auth.bearer(&ed).await.unwrap_err(), Refused::UnknownKey);
    *answer.lock() = Some(fixture.jwks(&["ec", "ed"]).to_string());
    until("the new key is known", async || auth.bearer(&ed).await.is_ok()).await;
    for outage in [None, Some("<html>".to_owned()), Some(json!({"keys": []}).to_string())] {
        *answer.lock() = outage;
        let before = asked.load(Ordering::SeqCst);
        until("asked again", async || asked.load(Ordering::SeqCst) >= before + 2).await;
        assert!(auth.bearer(&ec).await.is_ok() && auth.standing(&first).is_ok());
    }
    *answer.lock() = Some(fixture.jwks(&["ed"]).to_string());
    until("the old key is gone", async || auth.standing(&first) == Err(Refused::Revoked)).await;
    assert_eq!(auth.bearer(&ec).await.unwrap_err(), Refused::UnknownKey);
}

#[tokio::test]
async fn e48_a_key_server_that_does_not_answer_holds_up_no_revocation() {
    let fixture = Fixture::new();
    // They accept, by their listen queues, and never answer.
    let silent: Vec<_> = (0..8).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let issuer = |(n, listener): (usize, &std::net::TcpListener)| {
        format!(
            "[[auth.issuer]]\nissuer = 'https://{n}.example'\naudience = 'tidegate'\nalgorithms = ['EdDSA']\n\
             jwks = 'http://{}/'\n",
            listener.local_addr().unwrap()
        )
    };
    let issuers: String = silent.iter().enumerate().map(issuer).collect();
    let all = format!("{}{issuers}", shared(""));
    let auth = from(&fixture.write(&all));
    tokio::spawn(auth.clone().follow());
    let who = auth.bearer(&hs256(SECRET, &claims(json!({})))).await.unwrap();
    let began = Instant::now();
    fixture.write(&format!("{all}[[auth.revoked]]\njti = 'j1'\n"));
    until("revoked", async || auth.standing(&who) == Err(Refused::Revoked)).await;
    // One after the other they would take 8 x 5 s; the reload takes one.
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn every_error_of_the_section_is_told_at_once() {
    let fixture = Fixture::new();
    let path = fixture.write(
        r#"
        [auth]
        reload_seconds = 0
        [[auth.issuer]]
        issuer = "a"
        audience = "b"
        algorithms = ["HS256", "RS256"]
        secret_file = "hs.secret"
        [[auth.issuer]]
        issuer = "c"
        audience = "d"
        algorithms = ["none"]
        jwks = "missing.json"
        leeway_seconds = 3600
        [[auth.issuer]]
        issuer = "e"
        [[auth.api_key]]
        name = "k"
        sha256 = "tg_this_is_the_key_itself"
        subject = ""
        tenant = "Bad"
        scopes = ["everything"]
        expires = 2030-01-01
        [[auth.api_key]]
        key = "x"
        [[auth.revoked]]
        tenant = "x"
        [auth.tickets]
        first_use_seconds = 100000
        [auth.session]
        http_only = false
        "#,
    );
    let errors = Authenticator::from_file(&path).unwrap_err();
    for part in [
        "reload_seconds must be",
        "\"a\"): either algorithms",
        "\"none\" is none of",
        "missing.json",
        "leeway_seconds must",
        "number 3: missing field",
        "sha256 must be",
        "the subject must have",
        "\"Bad\" is not",
        "\"everything\" is no scope",
        "a time with its offset",
        "unknown field `key`",
        "name a jti or a subject",
        "first_use_seconds must",
        "unknown field `http_only`",
    ] {
        assert!(errors.to_string().contains(part), "{part} is missing in\n{errors}");
    }
    assert!(!errors.to_string().contains("tg_this"), "{errors}");
    for (text, part) in [("[auth]\n", "nobody could come in"), ("[other]\n", "other"), ("[auth\n", "line 1")]
    {
        let error = Authenticator::from_file(&fixture.write(text)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(Authenticator::from_file(&fixture.write("exec = []\n")).unwrap().is_none());
}

//! Tokens as attackers and accidents make them. They are put together byte by byte and signed by the cryptographic
//! library itself, not by what verifies them.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(clippy::needless_pass_by_value, reason = "json!() where it is used reads best")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as B64};
use serde_json::{Value, json};
use tidegate_auth::{Authenticator, Credential, MAX_TOKEN_BYTES, Refused, Scope, mint, now};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn b64(bytes: impl AsRef<[u8]>) -> String {
    B64.encode(bytes)
}

/// Header and claims, not signed yet.
fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", b64(header.to_string()), b64(claims.to_string()))
}

fn signed(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = unsigned(header, claims);
    let signature = sign(message.as_bytes());
    format!("{message}.{}", b64(signature))
}

fn hs256(key: &[u8], claims: &Value) -> String {
    let sign =
        |message: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec();
    signed(&json!({"alg": "HS256", "typ": "JWT"}), claims, sign)
}

fn claims(changes: Value) -> Value {
    let mut claims = json!({
        "iss": "https://idp.example", "aud": "tidegate", "sub": "alice", "exp": now() + 600, "iat": now(),
        "scope": "openid jobs:read jobs:submit", "org": "acme", "jti": "j1",
    });
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// Three issuers' keys, and a configuration in a directory of its own.
struct Fixture {
    dir: tempfile::TempDir,
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let ed = Ed25519KeyPair::generate().unwrap();
        fs::write(dir.path().join("hs.secret"), SECRET).unwrap();
        let fixture = Self { dir, rsa, ec, ed };
        fs::write(fixture.dir.path().join("jwks.json"), fixture.jwks(&["rsa", "ec", "ed"]).to_string())
            .unwrap();
        fixture
    }

    fn modulus(&self) -> Vec<u8> {
        self.rsa.public_key().modulus().big_endian_without_leading_zero().to_vec()
    }

    fn jwks(&self, kids: &[&str]) -> Value {
        let ec = self.ec.public_key().as_ref();
        let keys = [
            json!({"kty": "RSA", "kid": "rsa", "use": "sig", "n": b64(self.modulus()),
                   "e": b64(self.rsa.public_key().exponent().big_endian_without_leading_zero())}),
            json!({"kty": "EC", "crv": "P-256", "kid": "ec", "alg": "ES256", "x": b64(&ec[1..33]), "y": b64(&ec[33..])}),
            json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(self.ed.public_key())}),
        ];
        let wanted = |key: &Value| kids.contains(&key["kid"].as_str().unwrap());
        // What is not understood must not spoil the rest.
        let odd = [json!({"kty": "future"}), json!({"kty": "oct", "kid": "oct", "k": b64(SECRET)}), json!(7)];
        json!({"keys": keys.into_iter().filter(wanted).chain(odd).collect::<Vec<_>>()})
    }

    fn rs256(&self, header: Value, claims: &Value) -> String {
        signed(&header, claims, |message| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
            signature
        })
    }

    fn es256(&self, header: Value, claims: &Value) -> String {
        signed(&header, claims, |m| self.ec.sign(&SystemRandom::new(), m).unwrap().as_ref().to_vec())
    }

    fn eddsa(&self, header: Value, claims: &Value) -> String {
        signed(&header, claims, |m| self.ed.sign(m).as_ref().to_vec())
    }

    fn write(&self, auth: &str) -> PathBuf {
        let path = self.dir.path().join("tidegate.toml");
        fs::write(&path, auth).unwrap();
        path
    }

    fn public(&self) -> Authenticator {
        from(&self.write(
            r#"
            [[exec]]
            kind = "another part's"
            [[auth.issuer]]
            issuer = "https://idp.example"
            audience = ["other", "tidegate"]
            algorithms = ["RS256", "ES256", "EdDSA"]
            jwks = "jwks.json"
            leeway_seconds = 5
            tenant_claim = "org"
            "#,
        ))
    }

    fn shared(&self) -> Authenticator {
        from(&self.write(&shared("")))
    }
}

fn shared(more: &str) -> String {
    format!(
        "[auth]\nreload_seconds = 1\n[[auth.issuer]]\nissuer = 'https://idp.example'\naudience = 'tidegate'\n\
         algorithms = ['HS256']\nsecret_file = 'hs.secret'\nleeway_seconds = 5\n{more}"
    )
}

fn from(path: &Path) -> Authenticator {
    Authenticator::from_file(path).unwrap().unwrap()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn each_algorithm_verifies_and_claims_become_a_principal() {
    let fixture = Fixture::new();
    let auth = fixture.public();
    let claims = claims(json!({}));
    for token in [
        fixture.rs256(json!({"alg": "RS256", "kid": "rsa"}), &claims),
        fixture.es256(json!({"alg": "ES256", "kid": "ec"}), &claims),
        fixture.eddsa(json!({"alg": "EdDSA", "kid": "ed"}), &claims),
    ] {
        let who = auth.bearer(&token).await.unwrap();
        assert_eq!((&*who.tenant, &*who.subject), ("acme", "alice"));
        assert_eq!(who.scopes.names(), ["jobs:submit", "jobs:read"]);
        assert_eq!(who.expires, claims["exp"].as_u64());
        assert!(matches!(&who.credential, Credential::Token { jti: Some(jti), .. } if jti == "j1"));
        assert_eq!(auth.standing(&who), Ok(()));
    }
    let token = hs256(SECRET, &claims);
    assert_eq!(fixture.shared().bearer(&token).await.unwrap().tenant, "default", "the issuer's fixed tenant");
}

#[tokio::test]
async fn e49_the_algorithm_and_the_key_come_from_the_configuration() {
    let fixture = Fixture::new();
    let auth = fixture.public();
    let claims = claims(json!({}));
    let refused = async |token: String| auth.bearer(&token).await.unwrap_err();
    // The public key as the shared secret, in every form that it is published in.
    let n = fixture.modulus();
    for secret in
        [n.clone(), b64(&n).into_bytes(), fixture.jwks(&["rsa"]).to_string().into_bytes(), SECRET.to_vec()]
    {
        assert_eq!(refused(hs256(&secret, &claims)).await, Refused::Algorithm);
    }
    for none in ["none", "None", "NONE", "nOnE", "", "HS512", "RS512", "PS256"] {
        for signature in ["", "AAAA"] {
            let token = format!("{}.{signature}", unsigned(&json!({"alg": none, "kid": "rsa"}), &claims));
            assert_eq!(refused(token).await, Refused::Algorithm, "{none}");
        }
    }
    // A key of one kind under the name of another.
    assert_eq!(
        refused(fixture.rs256(json!({"alg": "ES256", "kid": "rsa"}), &claims)).await,
        Refused::Algorithm
    );
    assert_eq!(
        refused(fixture.es256(json!({"alg": "RS256", "kid": "ec"}), &claims)).await,
        Refused::Algorithm
    );
    assert_eq!(
        refused(fixture.es256(json!({"alg": "ES256", "kid": "ed"}), &claims)).await,
        Refused::Algorithm
    );
    // Two keys under one name: each for its own algorithm.
    let twins = fixture.jwks(&["rsa", "ec"]).to_string();
    let twins = twins.replace("\"rsa\"", "\"twin\"").replace("\"ec\"", "\"twin\"");
    fs::write(fixture.dir.path().join("jwks.json"), twins).unwrap();
    let twins = fixture.public();
    for token in [
        fixture.rs256(json!({"alg": "RS256", "kid": "twin"}), &claims),
        fixture.es256(json!({"alg": "ES256", "kid": "twin"}), &claims),
    ] {
        assert!(twins.bearer(&token).await.is_ok());
    }
    // Wrong, missing, invented and secret kids.
    assert_eq!(
        refused(fixture.rs256(json!({"alg": "RS256", "kid": "new"}), &claims)).await,
        Refused::UnknownKey
    );
    assert_eq!(refused(fixture.rs256(json!({"alg": "RS256"}), &claims)).await, Refused::UnknownKey);
    assert_eq!(
        refused(fixture.rs256(json!({"alg": "RS256", "kid": "oct"}), &claims)).await,
        Refused::UnknownKey
    );
    let traversal = json!({"alg": "RS256", "kid": "../../etc/passwd"});
    assert_eq!(refused(fixture.rs256(traversal, &claims)).await, Refused::UnknownKey);
    // Keys that the token brings along, and extensions that must be understood.
    let own =
        json!({"alg": "RS256", "kid": "x", "jwk": fixture.jwks(&["rsa"])["keys"][0], "jku": "http://evil"});
    assert_eq!(refused(fixture.rs256(own, &claims)).await, Refused::UnknownKey);
    let critical = json!({"alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": false});
    assert_eq!(refused(fixture.rs256(critical, &claims)).await, Refused::Malformed);
    // Another's signature, a cut one, and claims that were changed after signing.
    let token = fixture.rs256(json!({"alg": "RS256", "kid": "rsa"}), &claims);
    let (message, signature) = token.rsplit_once('.').unwrap();
    let header = message.split('.').next().unwrap();
    let other = Fixture::new().rs256(json!({"alg": "RS256", "kid": "rsa"}), &claims);
    assert_eq!(refused(other).await, Refused::Signature);
    assert_eq!(refused(format!("{message}.")).await, Refused::Signature);
    let forged = b64(self::claims(json!({"sub": "admin"})).to_string());
    assert_eq!(refused(format!("{header}.{forged}.{signature}")).await, Refused::Signature);
    // A shared secret's issuer takes no public key's token either.
    let token = fixture.rs256(json!({"alg": "RS256", "kid": "rsa"}), &claims);
    assert_eq!(fixture.shared().bearer(&token).await.unwrap_err(), Refused::Algorithm);
}

#[tokio::test]
async fn e49_times_audience_issuer_and_claims_are_demanded() {
    let fixture = Fixture::new();
    let auth = fixture.shared();
    let now = now();
    for (changes, expected) in [
        (json!({"exp": now - 10}), Refused::Expired),
        (json!({"exp": null}), Refused::Claim("exp")),
        (json!({"exp": "tomorrow"}), Refused::Claim("exp")),
        (json!({"exp": -1}), Refused::Claim("exp")),
        (json!({"nbf": now + 60}), Refused::NotYet),
        (json!({"nbf": "x"}), Refused::Claim("nbf")),
        (json!({"aud": "tidegate2"}), Refused::Audience),
        (json!({"aud": ["a", "b"]}), Refused::Audience),
        (json!({"aud": null}), Refused::Claim("aud")),
        (json!({"aud": 1}), Refused::Claim("aud")),
        (json!({"iss": "https://idp.example/"}), Refused::UnknownIssuer),
        (json!({"iss": null}), Refused::Claim("iss")),
        (json!({"iss": ["https://idp.example"]}), Refused::Malformed),
        (json!({"sub": null}), Refused::Claim("sub")),
        (json!({"sub": ""}), Refused::Claim("sub")),
        (json!({"sub": "a\nb"}), Refused::Claim("sub")),
        (json!({"sub": 7}), Refused::Claim("sub")),
        (json!({"jti": 7}), Refused::Claim("jti")),
    ] {
        let refused = auth.bearer(&hs256(SECRET, &claims(changes.clone()))).await.unwrap_err();
        assert_eq!(refused, expected, "{changes}");
    }
    // Within the leeway a token is taken; nothing that is open may outlive `exp`, though.
    let late = auth.bearer(&hs256(SECRET, &claims(json!({"exp": now - 1})))).await.unwrap();
    assert_eq!(auth.standing(&late), Err(Refused::Expired));
    assert!(
        auth.bearer(&hs256(SECRET, &claims(json!({"nbf": now + 2, "exp": (now + 60) as f64 + 0.5}))))
            .await
            .is_ok()
    );
    let none = auth.bearer(&hs256(SECRET, &claims(json!({"scope": "admin *  JOBS:READ"})))).await.unwrap();
    assert!(none.scopes.names().is_empty());
    // An issuer of one tenant's people must not become every tenant's gateway by a word in a claim.
    let all = json!({"scope": "jobs:read engine:delegate engine:work"});
    assert_eq!(
        auth.bearer(&hs256(SECRET, &claims(all.clone()))).await.unwrap().scopes.names(),
        ["jobs:read"]
    );
    let granted = shared("grants = { 'engine:work' = ['engine:work'] }\n");
    let granted = from(&fixture.write(&granted));
    let who = granted.bearer(&hs256(SECRET, &claims(all))).await.unwrap();
    assert_eq!(who.scopes.names(), ["jobs:read", "engine:work"]);
    for tenant in [json!("Acme"), json!("a/b"), json!(null), json!(["acme"]), json!("")] {
        let auth = fixture.public();
        let token = fixture.eddsa(json!({"alg": "EdDSA", "kid": "ed"}), &claims(json!({"org": tenant})));
        assert_eq!(auth.bearer(&token).await.unwrap_err(), Refused::Claim("of the tenant"), "{tenant}");
    }
}

#[tokio::test]
async fn hostile_texts_are_refused_at_little_cost() {
    let fixture = Fixture::new();
    let auth = fixture.shared();
    let huge = hs256(SECRET, &claims(json!({"x": "y".repeat(MAX_TOKEN_BYTES)})));
    assert_eq!(auth.bearer(&huge).await.unwrap_err(), Refused::TooLong);
    let deep = format!("{}.{}.AA", b64(r#"{"alg":"HS256"}"#), b64("[".repeat(6000)));
    let good = hs256(SECRET, &claims(json!({})));
    let padded = good.replace('.', "=.");
    for bad in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "ä.ö.ü",
        "\0",
        &deep,
        &padded,
        &good[1..],
        &format!("{good}.x"),
        &format!(" {good}"),
    ] {
        assert!(auth.bearer(bad).await.is_err(), "{bad}");
    }
    // Doubled names are a way to tell two readers two things.
    let twice = b64(r#"{"alg":"HS256","alg":"none"}"#);
    let token = format!("{twice}.{}.AA", b64(claims(json!({})).to_string()));
    assert_eq!(auth.bearer(&token).await.unwrap_err(), Refused::Malformed);
    assert!(!format!("{auth:?}").contains("0123"));
}

#[tokio::test]
async fn api_keys_are_known_by_their_hash_until_they_end() {
    let fixture = Fixture::new();
    let ((key, hash), (ended, ended_hash)) = (mint::api_key(), mint::api_key());
    let entry = |hash: &[u8; 32], more: &str| {
        format!(
            "[[auth.api_key]]\nname = 'n'\nsha256 = '{}'\nsubject = 'ci'\ntenant = 'acme'\n\
             scopes = ['jobs:submit']\n{more}\n",
            mint::sha256_hex(hash)
        )
    };
    let text = entry(&hash, "expires = 2999-01-01T00:00:00Z")
        + &entry(&ended_hash, "expires = 2001-01-01T00:00:00Z");
    let auth = from(&fixture.write(&text));
    let who = auth.bearer(&key).await.unwrap();
    assert_eq!((&*who.tenant, &*who.subject, who.scopes.names()), ("acme", "ci", vec!["jobs:submit"]));
    for bad in [&ended, "tg_", &key[..key.len() - 1], &key.to_ascii_lowercase(), &mint::sha256_hex(&hash)] {
        assert!(auth.bearer(bad).await.is_err());
    }
    let process = auth.process_key();
    assert!(auth.bearer(&process).await.unwrap().scopes.allow(Scope::Delegate));
    assert_eq!(from(&fixture.write(&text)).bearer(&process).await.unwrap_err(), Refused::UnknownApiKey);
}

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
    fixture.write("[auth]\nnonsense = 1\n");
    tokio::time::sleep(Duration::from_millis(1500)).await; // longer than a reload: nothing may happen
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

#[tokio::test]
async fn minted_tokens_verify() {
    let fixture = Fixture::new();
    let (private, public) = mint::ed25519().unwrap();
    fs::write(fixture.dir.path().join("jwks.json"), public.to_string()).unwrap();
    assert!(public["keys"][0].get("d").is_none(), "the private key stays private");
    let auth = fixture.public();
    let key = mint::SigningKey::from_jwk(&private.to_string()).unwrap();
    assert_eq!(auth.bearer(&key.sign(&claims(json!({}))).unwrap()).await.unwrap().subject, "alice");
    let key = mint::SigningKey::from_secret(str::from_utf8(SECRET).unwrap()).unwrap();
    assert!(fixture.shared().bearer(&key.sign(&claims(json!({}))).unwrap()).await.is_ok());
    assert!(
        mint::SigningKey::from_jwk(&public.to_string()).is_err()
            && mint::SigningKey::from_secret("short").is_err()
    );
    assert!(!format!("{key:?}").contains("0123"));
}

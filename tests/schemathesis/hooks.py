"""Signs in for schemathesis, and fills in the right password in half of the requests that need one."""

import itertools
import random

import requests
import schemathesis

PASSWORD = "correct horse battery staple"
COOKIE = "__Host-session"
NAMES = (f"user-{n}" for n in itertools.count())


@schemathesis.auth(refresh_interval=None)
class Session:
    """Opens a session for each case, because the case before may have ended its session or deleted its account."""

    email = None

    def get(self, case, context):
        base = case.operation.schema.get_base_url().rstrip("/")
        for _ in range(2):
            if self.email is None:
                self.email = f"{next(NAMES)}@example.org"
                made = requests.post(f"{base}/auth/register", json=self.credentials(), timeout=10)
                assert made.status_code == 201, made.text
            login = requests.post(f"{base}/auth/login", json=self.credentials(), timeout=10)
            if login.status_code == 200:
                return login.headers["set-cookie"].split(";")[0].split("=", 1)[1]
            # A case has changed the password or deleted the account.
            self.email = None
        raise AssertionError(f"nobody can sign in: {login.status_code} {login.text}")

    def credentials(self):
        return {"email": self.email, "password": PASSWORD}

    def set(self, case, data, context):
        case.cookies = {**(case.cookies or {}), COOKIE: data}


@schemathesis.hook
def before_call(context, case, kwargs):
    field = {"/auth/password": "current_password", "/auth/account": "password"}.get(case.operation.path)
    if field and isinstance(case.body, dict) and isinstance(case.body.get(field), str) and random.random() < 0.5:
        case.body = {**case.body, field: PASSWORD}

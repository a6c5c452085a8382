"""A Django of its own process: it logs users in, and says with which cookies. Later it says what it still knows of them.

The commands come as lines of JSON, and each is answered by one.
"""

from __future__ import annotations

import json
import sys
from typing import Any

OPTIONS = json.loads(sys.argv[1])

from django.conf import settings

settings.configure(
    SECRET_KEY=OPTIONS["key"],
    SECRET_KEY_FALLBACKS=OPTIONS.get("fallbacks", []),
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": OPTIONS["database"]}},
    CACHES={
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": OPTIONS["redis"],
            "KEY_PREFIX": OPTIONS["prefix"],
            "OPTIONS": {"serializer": "tests.apps.django_json.Serializer"} if OPTIONS.get("json") else {},
        }
    },
    SESSION_ENGINE=f"django.contrib.sessions.backends.{OPTIONS['backend']}",
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    USE_TZ=True,
)

import django

django.setup()

from django.contrib.auth import authenticate, get_user, login
from django.contrib.auth.models import User
from django.core.management import call_command
from django.http import HttpRequest, JsonResponse
from django.test import Client
from django.urls import path


def enter(request: HttpRequest) -> JsonResponse:
    asked = json.loads(request.body)
    if asked["user"] is not None:
        name = f"user-{asked['user']}"
        User.objects.create_user(name, password="swordfish")
        user = authenticate(request, username=name, password="swordfish")
        login(request, user)
    request.session.update(asked["data"])
    if asked.get("short"):
        request.session.set_expiry(0)
    user = request.user
    return JsonResponse({"user": str(user.pk) if user.is_authenticated else None})


def me(request: HttpRequest) -> JsonResponse:
    user = get_user(request)
    return JsonResponse({"user": str(user.pk) if user.is_authenticated else None, "data": dict(request.session)})


urlpatterns = [path("enter", enter), path("me", me)]


def answer(command: dict[str, Any]) -> Any:
    if command["do"] == "migrate":
        call_command("migrate", verbosity=0)
        return None
    client = Client()
    if command["do"] == "enter":
        seen = client.post("/enter", json.dumps(command), content_type="application/json").json()
        return {**seen, "cookies": {name: morsel.coded_value for name, morsel in client.cookies.items()}}
    client.cookies.load({name: value.strip('"') for name, value in command["cookies"].items()})
    return client.get("/me").json()


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)

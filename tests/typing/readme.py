"""The program of README.md, for the type checkers; ``tests/test_docs.py`` compares the two."""

from fastapi import FastAPI

from asgi_sessions import MemoryStore, SessionMiddleware
from asgi_sessions.frameworks.fastapi import CurrentSession

app = FastAPI()
app.add_middleware(SessionMiddleware, MemoryStore())


@app.get("/")
def basket(session: CurrentSession) -> dict[str, int]:
    session["tea"] = session.get("tea", 0) + 1
    return {"tea": session["tea"]}


@app.post("/log-in")
def log_in(session: CurrentSession) -> None:
    session.log_in("alice")  # after you have checked her password

"""Sizes and versions of files at addresses that lists name: from an earlier run, else from their servers."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from telecine.base.terminal import with_progress
from telecine.data.errors import Deadline, thread_errors
from telecine.data.lazy.saved_addresses import SavedAddresses
from telecine.data.lazy.saved_index import SavedIndex
from telecine.data.remote import look_up
from telecine.data.source import RemotePath, Source


class AddressBook:
    """Asks servers about files, and keeps the answers for the next run.

    Args:
        saved_index: Keeps them. The `timeout` of its settings is for each file.
    """

    def __init__(self, saved_index: SavedIndex) -> None:
        self._saved_index = saved_index
        self._saved = saved_index.saved_addresses()
        self._used: list[SavedAddresses] = []
        self._has_new = False  # whether some of `_used` are not saved

    def look_up(self, sources: Iterable[Source]) -> dict[Source, Source | None]:
        """Return the files at addresses, with their sizes and versions; None for one that does not exist.

        Raises:
            DataError: a server does not answer in time.
        """

        def ask(file: RemotePath) -> RemotePath | None:
            try:
                deadline = Deadline(file, self._saved_index.config.timeout)
                return look_up(file, deadline, from_listing=True)
            except FileNotFoundError:
                return None

        answers: dict[Source, Source | None] = {}
        unknown = []
        used = []
        for source in sources:
            if not isinstance(source, RemotePath):
                continue
            if source.size is not None:  # a folder was listed
                answers[source] = source
                continue
            saved = self._saved.find(source)
            if saved is None:
                unknown.append(source)
            else:
                answers[source] = saved
                used.append(saved)
        try:
            with thread_errors(), ThreadPoolExecutor(os.cpu_count()) as pool:
                received = pool.map(ask, unknown)
                if unknown:
                    received = with_progress(received, "asking servers", total=len(unknown))
                for source, answer in zip(unknown, received, strict=True):
                    answers[source] = answer
                    if answer is not None and answer.size is not None:
                        used.append(answer)
                        self._has_new = True
        finally:  # also if a server does not answer
            self._used.append(SavedAddresses.of(used))
        return answers

    def save(self, *, is_complete: bool) -> None:
        """Keep the answers for the next run, if there are new ones.

        Args:
            is_complete: Whether all files were looked up. What earlier runs have kept of others is then removed.
        """
        if not self._has_new:
            return
        addresses = list(self._used)
        if not is_complete:
            addresses.append(self._saved)
        self._saved_index.save_addresses(SavedAddresses.joined(addresses))
        self._has_new = False

    def forget(self) -> None:
        """Ask servers again in the next run: a file is not as they have said."""
        self._used.clear()
        self._has_new = False
        self._saved_index.forget_addresses()

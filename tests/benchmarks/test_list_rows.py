def test_table(run_here, tables_in):
    text = run_here("list_rows.py", "--rows", "100", "--videos", "2")
    assert text.startswith("2 videos; ")
    ((header, rows),) = tables_in(text)
    assert header == ["list", "rows", "MB", "without an index, seconds", "with it, seconds"]
    assert [row[:3] for row in rows] == [[".csv", "100", "0.0"], [".jsonl", "100", "0.0"]]
    assert all(float(seconds) >= 0 for row in rows for seconds in row[3:])

def test_table(run_here, tables_in):
    text = run_here("list_rows.py", "--rows", "100", "--videos", "2")
    assert text.startswith("2 videos; ")
    ((header, rows),) = tables_in(text)
    assert header[:3] == ["list", "rows", "MB"]
    assert header[3:5] == ["seconds, without index", "of the processor, without index"]
    assert [row[:3] for row in rows] == [[".csv", "100", "0.0"], [".jsonl", "100", "0.0"]]
    assert all(float(seconds) >= 0 for row in rows for seconds in row[3:])
    assert [len(row) for row in rows] == [7, 7]

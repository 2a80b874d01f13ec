def test_the_table_of_start_up_times(run_here, tables_in):
    ((header, rows),) = tables_in(run_here("startup.py", "--repeats", "1", "--only", "pass", "version"))
    assert header == ["command", "processor seconds"]
    assert [command for command, _ in rows] == ["`python -c pass`", "`telecine --version`"]
    assert all(float(seconds) < 1 for _, seconds in rows), "without PyTorch"

from emo_r3.cli import main

raise SystemExit(main())

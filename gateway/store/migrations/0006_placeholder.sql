-- A placeholder of the branch w-pay: 0006 is another branch's, and this file goes at the merge.
SELECT 1;
